"""Pure functions from the optimizer step to a value: nothing to save, nothing to resume."""

import math

Moment = int | float
"""A whole number of optimizer steps, or a fraction of the run's steps (0.75, 1.0)."""


def steps_of(moment: Moment, *, total: int) -> int:
    """A moment in optimizer steps.

    Args:
        moment: an `int` counts steps; a `float` is that share of the run, rounded.
        total: optimizer steps of the run.

    Raises:
        ValueError: a share outside [0, 1].

    >>> steps_of(0.75, total=200), steps_of(1, total=200), steps_of(1.0, total=200)
    (150, 1, 200)
    """
    if isinstance(moment, int):
        return moment
    if not 0.0 <= moment <= 1.0:
        raise ValueError(f"{moment} is no share of a run; use 0.0 to 1.0, or a whole number")
    return round(moment * total)


def linear(step: int, *, start: Moment, stop: Moment, first: float, last: float) -> float:
    """`first` up to `start`, `last` from `stop` on, a straight line between.

    >>> linear(5, start=0, stop=10, first=1.0, last=0.0)
    0.5
    """
    return first + (last - first) * progress(step, start=start, stop=stop)


def cubic(step: int, *, start: Moment, stop: Moment, first: float, last: float) -> float:
    """Falls fast first and slowly last (Zhu & Gupta 2017, arXiv 1710.01878, eq. 1).

    >>> cubic(100, start=0, stop=100, first=1.0, last=0.2)
    0.2
    """
    return last + (first - last) * (1.0 - progress(step, start=start, stop=stop)) ** 3


def cosine(step: int, *, start: Moment, stop: Moment, first: float, last: float) -> float:
    """Half a cosine wave from `first` to `last`; flat at both ends.

    >>> round(cosine(5, start=0, stop=10, first=1.0, last=0.0), 6)
    0.5
    """
    wave = 0.5 * (1.0 + math.cos(math.pi * progress(step, start=start, stop=stop)))
    return last + (first - last) * wave


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float = 0.0) -> float:
    """Learning-rate factor: 0 to 1 over `warmup` steps, then half a cosine down to `floor`.

    >>> warmup_cosine(0, warmup=10, total=100) < warmup_cosine(10, warmup=10, total=100)
    True
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return cosine(step, start=warmup, stop=max(total, warmup + 1), first=1.0, last=floor)


def progress(step: int, *, start: Moment, stop: Moment) -> float:
    """Share of the way from `start` to `stop`, in [0, 1].

    Raises:
        ValueError: `stop` is not after `start`.
    """
    if stop <= start:
        raise ValueError(f"a schedule must stop after it starts: start={start}, stop={stop}")
    return min(max((step - start) / (stop - start), 0.0), 1.0)
