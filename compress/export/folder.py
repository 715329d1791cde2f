"""A folder that appears whole or not at all: write beside, sync, rename into place."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from compress.errors import BadInput


@contextlib.contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """A new folder beside `path` to write into; at the end it takes the name `path`.

    Whatever stood there stays until the new one is complete. On any error the new folder is
    removed. What killed runs left behind is cleared first.

    Raises:
        BadInput: the place is a file, or cannot be written (rights, a full disk).
    """
    final = Path(path).absolute()
    if final.exists() and not final.is_dir():
        raise BadInput(f"{final} is a file; an export needs a folder")
    with _as_bad_input(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(final)
        partial = final.with_name(f".{final.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        partial.mkdir()
    try:
        with _as_bad_input(final):
            yield partial
            sync_folder(partial)
            _take_name(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
