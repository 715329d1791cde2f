"""A bar for slow steps on the data: on a terminal alone, and not for what takes a moment."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def counted(items: Iterable[Item], words: str, total: int | None = None) -> Iterable[Item]:
    """The same items; a terminal sees their count after two seconds.

    Args:
        items: what is gone through once.
        words: what is being done, in the bar.
        total: how many there are; None counts without an end.
    """
    bar: Iterable[Item] = tqdm(
        items, desc=words, total=total, delay=2.0, disable=None, leave=False, unit=" rows"
    )
    return bar
