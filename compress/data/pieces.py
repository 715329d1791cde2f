"""Cutting text into pieces that can be tokenised at once, and dealing them out to the parts."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compress.errors import BadInput

PIECE_CHARACTERS = 1 << 14
"""Longest piece: bounds the tokenizer's memory, which is some hundred bytes a character."""


def stable_key(text: str | bytes, *, seed: int) -> int:
    """A 63-bit hash that is equal on every machine, Python and day.

    >>> stable_key("os.py", seed=0) == stable_key(b"os.py", seed=0)
    True
    """
    data = text.encode() if isinstance(text, str) else text
    digest = hashlib.blake2b(data, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest) >> 1


def cut_pieces(blocks: Iterable[str], *, longest: int = PIECE_CHARACTERS) -> Iterator[str]:
    """The text of `blocks` in pieces of at most `longest` characters, cut after a space or line.

    Never holds more than two blocks: a line of 100 MB streams through.

    >>> list(cut_pieces(["one two", " three"], longest=6))
    ['one ', 'two ', 'three']
    """
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > longest:
            end = _last_gap(rest, start, start + longest)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _last_gap(text: str, start: int, stop: int) -> int:
    """Just behind the last line end, else the last space; `stop` where there is neither."""
    for gap in ("\n", " "):
        found = text.rfind(gap, start, stop)
        if found >= start:
            return found + 1
    return stop


def check_shares(validation_share: float, test_share: float) -> None:
    """Refuse shares that leave nothing to train on or to validate on.

    Raises:
        BadInput: a share is outside [0, 1), or both together reach 1.
    """
    if not (0 < validation_share < 1 and 0 <= test_share < 1 and validation_share + test_share < 1):
        raise BadInput(
            f"validation_share={validation_share} and test_share={test_share} must lie in (0, 1) "
            "and [0, 1) and leave a train part; try 0.05 and 0.05"
        )


def split_by_key(
    keys: Sequence[int] | NDArray[np.int64], *, validation_share: float, test_share: float
) -> Mapping[str, NDArray[np.int64]]:
    """Row numbers of each part, in order: by the key alone, so that new rows move no old one.

    Only where chance leaves a part empty, it gets the rows of the next nearest key.

    >>> {k: list(map(int, v)) for k, v in split_by_key(
    ...     [0, 2**62, 2**62], validation_share=0.1, test_share=0).items()}
    {'train': [1, 2], 'validation': [0], 'test': []}
    """
    keys_N = np.asarray(keys, dtype=np.int64)
    share_N = keys_N / 2.0**63
    parts_N = np.where(
        share_N < validation_share, 1, np.where(share_N < validation_share + test_share, 2, 0)
    )
    for part, wanted in ((1, validation_share), (2, test_share)):
        candidates = keys_N[parts_N == 0]
        if wanted > 0 and not (parts_N == part).any() and np.unique(candidates).size > 1:
            parts_N[keys_N == candidates.min()] = part
    return {
        name: np.flatnonzero(parts_N == part)
        for part, name in enumerate(("train", "validation", "test"))
    }
