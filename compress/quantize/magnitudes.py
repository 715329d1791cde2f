"""What calibration remembers of an input: the largest magnitude and how often each one came.

Legend: K buckets of magnitudes, one for each upper half of a float's bits.
"""

import torch
from torch import Tensor

from compress.errors import BadInput
from compress.quantize.fake_quantize import quantized
from compress.quantize.grid import Grid

OBSERVERS = ("minmax", "percentile", "mse")
BUCKETS = 1 << 15
"""Sign-less upper 16 bits of fp32: neighbouring buckets lie 0.4 to 0.8 % apart."""


def count_magnitudes(values: Tensor) -> Tensor:
    """How many values fall into each bucket, int64 (K,)."""
    bits = values.detach().float().abs().flatten().view(torch.int32) >> 16
    return torch.bincount(bits, minlength=BUCKETS)


def bucket_middles(device: torch.device | None = None) -> Tensor:
    """The magnitude each bucket stands for, fp32 (K,); the first one is zero."""
    bits = torch.arange(BUCKETS, dtype=torch.int32, device=device)
    middles = ((bits << 16) + (1 << 15)).view(torch.float32)
    middles[0] = 0.0
    return middles


def clipping_point(
    largest: Tensor, counts_K: Tensor, grid: Grid, *, observer: str, percentile: float
) -> Tensor:
    """The magnitude that a static scale puts at the end of its range, (1,).

    Args:
        largest: magnitude seen, (1,).
        counts_K: of all values seen.
        grid: the codes, for `mse`.
        observer: `minmax` (nothing saturates), `percentile` (a share of the values stays inside)
            or `mse` (least squared error over the values seen).
        percentile: in (0, 1]; 1.0 is `minmax`.

    Raises:
        BadInput: no such observer.
    """
    if observer == "minmax":
        return largest
    middles_K = bucket_middles(counts_K.device)
    if observer == "percentile":
        kept = counts_K.cumsum(0) >= percentile * counts_K.sum()
        return torch.minimum(middles_K[kept.int().argmax()].reshape(1), largest)
    if observer == "mse":
        return _least_error(largest, counts_K, middles_K, grid)
    raise BadInput(f"observer={observer!r} is unknown; use one of {', '.join(OBSERVERS)}")


def _least_error(largest: Tensor, counts_K: Tensor, middles_K: Tensor, grid: Grid) -> Tensor:
    seen = counts_K.nonzero().squeeze(-1)
    values, weights = middles_K[seen].clamp(max=float(largest)), counts_K[seen].double()
    best, best_error = largest, torch.inf
    for shrink in torch.linspace(1.0, 0.05, 96).tolist():
        scale = grid.round_scale(grid.scale_of(largest * shrink))
        error = float(((quantized(values, scale, grid) - values).square().double() * weights).sum())
        if error < best_error:
            best, best_error = largest * shrink, error
    return best
