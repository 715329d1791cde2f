"""Straight lines through figures of a long run: does one grow, or is it flat within its noise?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, mean


@dataclass(frozen=True)
class Slope:
    """A fitted line: `per_hour` with the ends of its 95 % interval, `noise` around the line.

    `change` is the line's rise over the time that was looked at.
    """

    per_hour: float
    low: float
    high: float
    noise: float
    change: float
    middle: float

    @property
    def is_flat(self) -> bool:
        """Whether the interval holds 0, or the whole rise is no more than the noise."""
        return self.low <= 0 <= self.high or abs(self.change) <= self.noise


def fit(hours: Sequence[float], values: Sequence[float]) -> Slope:
    """Ordinary least squares of `values` over `hours`.

    Figures of a process are not independent: the slope's standard error is widened by
    sqrt((1 + r) / (1 - r)), r the residuals' correlation with the ones before them.

    Raises:
        ValueError: there are fewer than four values, or all are of one moment.

    >>> fit([0, 1, 2, 3], [1.0, 3.0, 5.0, 7.0]).per_hour
    2.0
    """
    count, centre, middle = len(hours), mean(hours), mean(values)
    spread = sum((x - centre) ** 2 for x in hours)
    if count < 4 or spread == 0:
        raise ValueError(f"a slope needs four values of different moments, not {count}")
    slope = (
        sum((x - centre) * (y - middle) for x, y in zip(hours, values, strict=True)) / spread
    )  # fmt: skip
    rests = [y - middle - slope * (x - centre) for x, y in zip(hours, values, strict=True)]
    squares = sum(r * r for r in rests)
    noise = math.sqrt(squares / (count - 2))
    half = _student(count - 2) * noise / math.sqrt(spread) * _widening(rests, squares)
    return Slope(
        per_hour=slope, low=slope - half, high=slope + half, noise=noise,
        change=slope * (max(hours) - min(hours)), middle=middle,
    )  # fmt: skip


def _widening(rests: list[float], squares: float) -> float:
    if squares == 0:
        return 1.0
    related = sum(a * b for a, b in pairwise(rests)) / squares
    related = min(max(related, 0.0), 0.98)
    return math.sqrt((1 + related) / (1 - related))


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t by the expansion of Fisher and Cornish (1960)."""
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2
