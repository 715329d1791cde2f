"""Whether kept files are still those that were written: sizes and hashes, checked at each opening.

A damaged Arrow file is no error to its reader: it answers other numbers, or ends the process.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from compress.errors import BadInput

WHOLE_BYTES = 64 << 20
"""Files up to this size are hashed whole; of larger ones both ends and evenly spaced samples."""

SAMPLE_BYTES = 1 << 20
SAMPLES = 64

Seal = Mapping[str, Sequence[object]]
"""File name -> [bytes, hash]."""


def seal(folder: Path, names: Sequence[str]) -> dict[str, list[object]]:
    """Sizes and hashes of these files of `folder`, flushed to the disk first."""
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())  # else a power cut leaves a whole name on half a file
    return {name: [(folder / name).stat().st_size, digest_of(folder / name)] for name in names}


def check_seal(folder: Path, sealed: Seal) -> None:
    """Refuse a folder whose files are not those that were sealed.

    Raises:
        BadInput: lists every file that is missing, cut or changed.
    """
    found = [_problem(folder / name, size, digest) for name, (size, digest) in sealed.items()]
    problems = [problem for problem in found if problem]
    if problems:
        raise BadInput(
            f"the data cache {folder} is damaged ({'; '.join(problems)}): delete that folder, "
            "and the next run makes it anew"
        )


def _problem(path: Path, size: object, digest: object) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
    return f"{path.name} was changed" if digest_of(path) != digest else None


def digest_of(path: Path) -> str:
    """Hash of a file's size and bytes; of a large file's sampled bytes."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for start in _starts(size):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _starts(size: int) -> Sequence[int]:
    if size <= WHOLE_BYTES:
        return range(0, size, SAMPLE_BYTES)
    last = size - SAMPLE_BYTES
    return [last * number // (SAMPLES - 1) for number in range(SAMPLES)]
