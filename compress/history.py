"""Records of what a method did at each update, for memory and checkpoints: never too many."""

from collections.abc import Mapping, Sequence
from typing import Any

MOST = 128
"""Records that are kept; a run of fractions (`every=0.05`) makes two dozen."""


def kept(
    records: Sequence[Mapping[str, Any]], new: Mapping[str, Any], *, most: int = MOST
) -> list[Any]:
    """The records and a new one; where these are too many, one with near neighbours goes.

    The first and the newest always stay, and the others spread over the whole run. What is kept
    depends on the records alone: a resumed run keeps what one that was left alone keeps.

    Args:
        records: so far, by rising `step`.
        new: of this update, with its `step`.
        most: records kept, 2 or more; 2 keeps the first and the newest.

    >>> records = [{"step": 0}, {"step": 10}, {"step": 11}]
    >>> [record["step"] for record in kept(records, {"step": 20}, most=3)]
    [0, 10, 20]
    """
    longer = [*records, new]
    while len(longer) > most:
        between = range(1, len(longer) - 1)
        longer.pop(min(between, key=lambda i: longer[i + 1]["step"] - longer[i - 1]["step"]))
    return longer
