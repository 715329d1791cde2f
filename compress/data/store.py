"""Results that are built once and kept: whole under their final name, or not there at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from compress.errors import BadInput

UNWRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST,
)  # fmt: skip


def data_folder(cache_dir: str | Path | None) -> Path:
    """Where tokens are kept: `cache_dir`, or data/ under COMPRESS_CACHE or ~/.cache/compress."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("COMPRESS_CACHE", "~/.cache/compress")).expanduser() / "data"


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, filled by `build` if it is not there yet; others who ask meanwhile wait.

    `build` writes into a folder beside, which is renamed when it returns. A killed build leaves
    only that one, and the next build clears it away.

    Raises:
        BadInput: the cache cannot be written, or the disk is full.
    """
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not folder.exists():
                _build_beside(folder, build)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise BadInput(
            f"cannot write the data cache {folder.parent}: {error.strerror}. "
            "Make room there, or name another place: COMPRESS_CACHE=<folder>"
        ) from error
    return folder


def _build_beside(folder: Path, build: Callable[[Path], None]) -> None:
    for left in folder.parent.glob(f".{folder.name}.building-*"):
        shutil.rmtree(left, ignore_errors=True)  # we hold the lock: whoever made it is dead
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.building-", dir=folder.parent))
    try:
        build(beside)
        beside.chmod(0o755)  # mkdtemp keeps other users of a shared cache out
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
