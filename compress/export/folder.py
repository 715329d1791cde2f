"""A folder that appears whole or not at all: write beside, sync, rename into place."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from compress.errors import BadInput

MARK = ".compress_export"
"""A file in each export: by it a later one knows that it may take the folder's place."""


@contextlib.contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """A new folder beside `path` to write into; at the end it takes the name `path`.

    An export that stood there stays until the new one is complete. On any error the new folder is
    removed. What killed runs left behind is cleared first.

    Raises:
        BadInput: the place cannot be written (rights, a full disk), or see `refuse_other`.
    """
    final = Path(path).absolute()
    refuse_other(final)
    with _as_bad_input(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(final)
        partial = final.with_name(f".{final.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        partial.mkdir()
    try:
        with _as_bad_input(final):
            yield partial
            (partial / MARK).write_text("A later export may take this folder's place.\n")
            sync_folder(partial)
            _take_name(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_other(path: str | Path) -> None:
    """Refuse a place where there is something else than an export: it would be lost.

    Raises:
        BadInput: it is a file, or a folder that holds files and was not written here.
    """
    place = Path(path)
    if place.exists() and not place.is_dir():
        raise BadInput(f"{place} is a file; an export needs a folder")
    held = sorted(p.name for p in place.iterdir()) if place.is_dir() else []
    if held and MARK not in held:
        first = ", ".join(held[:3]) + " ..." * (len(held) > 3)
        raise BadInput(
            f"{place} holds what no export wrote ({first}), and an export takes the place of "
            "the whole folder: name a new one, or move these away"
        )


@contextlib.contextmanager
def _as_bad_input(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(f"cannot write the export {final}: {reason}") from error


def _take_name(partial: Path, final: Path) -> None:
    previous = final.with_name(f".{final.name}.previous-{os.getpid()}")
    if final.exists():
        final.rename(previous)
    try:
        partial.rename(final)
    except OSError:
        if previous.exists():
            previous.rename(final)
        raise
    sync_file(final.parent)
    shutil.rmtree(previous, ignore_errors=True)


def clear_leftovers(final: Path) -> None:
    """Remove partial folders of processes that are gone; bring back a folder killed mid-rename."""
    for folder in final.parent.glob(f".{final.name}.previous-*"):
        if _alive(folder.name.rsplit("-", 1)[1]):
            continue
        if final.exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(final)
    for folder in final.parent.glob(f".{final.name}.partial-*-*"):
        if not _alive(folder.name.rsplit("-", 2)[1]):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Force every file of `folder`, then the folder, to the disk."""
    for path in sorted(folder.rglob("*")):
        sync_file(path)
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Force one file or folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
