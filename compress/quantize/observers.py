"""From a weight to its first scales: min-max, mean squared error, percentile."""

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor

from compress.errors import BadInput
from compress.quantize.fake_quantize import quantized
from compress.quantize.grid import (
    FP4_MAX,
    FP8_MAX,
    Grid,
    largest_magnitude,
    split,
    split_scale,
)

INITS = ("rtn", "mse", "percentile")
SHRINKS = tuple(1.0 - 0.02 * step for step in range(41))
"""Clipping points that the MSE search tries: 100 % down to 20 % of the largest magnitude."""


def initial_scale(
    weight_OI: Tensor, args: QuantizationArgs, grid: Grid, *, init: str = "rtn",
    global_scale: Tensor | None = None, percentile: float = 0.999, name: str = "weight",
) -> Tensor:  # fmt: skip
    """Scales in the layout of the file, fp32, positive.

    Args:
        weight_OI: the dense (masked) weight.
        args: what shares a scale.
        grid: the codes.
        init: `rtn` (largest magnitude), `mse` (clipping of least squared error) or `percentile`.
        global_scale: NVFP4's factor.
        percentile: share of magnitudes that stay inside, for `percentile`; 1.0 is `rtn`.
        name: the layer, for messages.

    Raises:
        BadInput: the weight holds NaN or infinities, or `init` is unknown.
    """
    require_finite(weight_OI, name)
    if init == "percentile":
        return grid.scale_of(_percentile(weight_OI, args, percentile))
    largest = largest_magnitude(args, weight_OI)
    if init == "rtn":
        return grid.scale_of(largest)
    if init == "mse":
        return _mse_scale(weight_OI, largest, args, grid, global_scale)
    raise BadInput(f"init={init!r} is unknown; use 'rtn', 'mse' or 'percentile'")


def require_finite(weight: Tensor, name: str) -> None:
    """Raises `BadInput`, naming the layer, where a weight holds NaN or infinities."""
    broken = weight.numel() - int(torch.isfinite(weight).sum())
    if broken:
        raise BadInput(
            f"{name}: {broken} of {weight.numel()} weights are NaN or infinite; "
            "nothing can be quantised from it. Check the checkpoint or lower the learning rate"
        )


def nvfp4_global_scale(largest: Tensor) -> Tensor:
    """448 * 6 / max |w| over all weights that the runtime fuses; 1 where they are all zero."""
    scale = FP8_MAX * FP4_MAX / largest.float().max().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(torch.isfinite(scale), scale, 1.0).reshape(1)


def _mse_scale(
    weight_OI: Tensor, largest: Tensor, args: QuantizationArgs, grid: Grid,
    global_scale: Tensor | None,
) -> Tensor:  # fmt: skip
    parts = split(args, weight_OI.float())
    best_error, best = torch.full_like(largest, torch.inf), grid.scale_of(largest)
    for shrink in SHRINKS:
        scale = grid.scale_of(largest * shrink)
        spread = split_scale(args, grid.round_scale(scale, global_scale))
        error = (quantized(parts, spread, grid) - parts).square_().sum_to_size(spread.shape)
        better = error.reshape(best.shape) < best_error
        best = torch.where(better, scale, best)
        best_error = torch.where(better, error.reshape(best.shape), best_error)
    return best


def _percentile(weight_OI: Tensor, args: QuantizationArgs, share: float) -> Tensor:
    largest = largest_magnitude(args, weight_OI)
    parts = split(args, weight_OI.float()).abs()
    if args.strategy == "block":
        parts = parts.transpose(1, 2).flatten(2)
    elif args.strategy == "tensor":
        parts = parts.reshape(1, -1)
    kept = max(1, min(parts.shape[-1], round(share * parts.shape[-1])))
    picked = parts.kthvalue(kept, dim=-1).values.reshape(largest.shape)
    # a row that is mostly zeros must not lose the few it has
    return torch.where(picked == 0, largest, picked)
