"""Bootstrap intervals of means, differences and ratios over sequences, items or requests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.errors import BadInput

Statistic = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

STATISTICS: Mapping[str, Statistic] = {
    "difference": lambda a, b: a - b,
    "ratio": lambda a, b: a / b,
    "exp_difference": lambda a, b: np.exp(b - a),
}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and where it would lie with other samples of the same kind."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Like `1.23 [1.20, 1.27]`."""
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap_interval(
    values_a: Sequence[float],
    values_b: Sequence[float] | None = None,
    *,
    weights: Sequence[float] | None = None,
    statistic: str = "difference",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron 1979) of a mean, or of two means over the same samples.

    Pairs are drawn together, so what both share (a hard text) cancels.

    Args:
        values_a: one sum a sequence; with `weights` its tokens, the mean is per token.
        values_b: of the same sequences in the same order; None gives the interval of a's mean.
        weights: how much each sequence counts; None counts all alike.
        statistic: of both means: `difference` a - b, `ratio` a / b, or `exp_difference`
            exp(b - a), the share of quality kept where a and b are losses.
        level: share of resamples inside; near 1.0 the interval is that of the extremes.
        resamples: more make the ends steadier.
        seed: equal seeds give equal intervals.

    Raises:
        BadInput: fewer than two values, unequal lengths, an unknown statistic, or numbers that
            give no interval.

    >>> bootstrap_interval([2.0, 4.0], [1.0, 3.0])
    Interval(value=1.0, low=1.0, high=1.0)
    """
    _check(values_a, values_b, weights, statistic)
    if not 0 < level < 1 or resamples < 1 or seed < 0:
        raise BadInput(
            f"level={level} must be between 0 and 1, resamples={resamples} at least 1, "
            f"seed={seed} at least 0"
        )
    a_N = np.asarray(values_a, dtype=np.float64)
    b_N = None if values_b is None else np.asarray(values_b, dtype=np.float64)
    weights_N = np.ones_like(a_N) if weights is None else np.asarray(weights, dtype=np.float64)
    counts_RN = _draws(len(a_N), resamples, seed)

    def measured(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        total = counts @ weights_N
        mean_a = (counts @ a_N) / total
        return mean_a if b_N is None else STATISTICS[statistic](mean_a, (counts @ b_N) / total)

    low, high = np.quantile(measured(counts_RN), [(1 - level) / 2, (1 + level) / 2])
    value = measured(np.ones((1, len(a_N))))[0]
    return Interval(value=float(value), low=float(low), high=float(high))


def _draws(samples: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each sample is drawn in each resample, (R, N)."""
    generator = np.random.default_rng(seed)
    even = np.full(samples, 1.0 / samples)
    return generator.multinomial(samples, even, size=resamples).astype(np.float64)


def _check(
    values_a: Sequence[float],
    values_b: Sequence[float] | None,
    weights: Sequence[float] | None,
    statistic: str,
) -> None:
    lengths = {len(v) for v in (values_a, values_b, weights) if v is not None}
    if len(lengths) > 1 or min(lengths) < 2:
        raise BadInput(f"an interval needs two samples or more, equally many: {sorted(lengths)}")
    if statistic not in STATISTICS:
        raise BadInput(f"statistic={statistic!r} must be one of {', '.join(STATISTICS)}")
