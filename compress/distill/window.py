"""When in a run the teacher works: a window of optimizer steps, its cost known before the first.

Pure functions of the step: nothing to save, and every rank agrees.
"""

from compress.errors import BadInput


def teaches(step: int, *, start: int, stop: int | None) -> bool:
    """Whether an optimizer step lies in the window [start, stop).

    >>> [teaches(step, start=2, stop=4) for step in range(5)]
    [False, False, True, True, False]
    """
    return step >= start and (stop is None or step < stop)


def taught_share(
    *, total: int, start: int = 0, stop: int | None = None, rows: float = 1.0
) -> float:
    """Teacher FLOPs over those of one that teaches every row of every step.

    Args:
        total: optimizer steps of the run.
        start: first step of the window.
        stop: first step after it; None: the run's end.
        rows: share of a step's rows that take the full path inside the window, audits included.

    >>> taught_share(total=200, start=8, stop=108)
    0.5
    """
    end = total if stop is None else min(stop, total)
    return rows * max(end - start, 0) / total


def check_window(*, start: int, stop: int | None, total: int | None) -> None:
    """Refuse a window that holds no step.

    Raises:
        BadInput: it ends before it starts, or starts after the run's end.
    """
    if start < 0 or (stop is not None and stop <= start):
        raise BadInput(f"the teacher would never work: start={start}, stop={stop} (steps)")
    if total is not None and start >= total > 0:
        raise BadInput(
            f"the teacher would never work: start={start}, but the run has {total} steps"
        )
