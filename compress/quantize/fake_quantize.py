"""Rounding to a grid in training: one autograd function, its gradients written out.

Everything is computed in fp32 whatever the weight's dtype: dividing bf16 by a bf16 scale flips one
int4 code in a hundred.
"""

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from compress.quantize.grid import Grid

CACHED_ELEMENTS = 1 << 17
"""Values worked on at once on a CPU: a dozen passes over them stay in a core's cache."""

KNOWN_SHAPES = 64
"""Shapes whose scratch memory is remembered: making the views anew takes longer than a pass."""


def fake_quantize(
    values: Tensor,
    scale: Tensor,
    *,
    grid: Grid,
    global_scale: Tensor | None = None,
    pass_saturated: bool = False,
    log_step: Tensor | None = None,
) -> Tensor:
    """Values rounded to `scale * code`, with gradients to both.

    `q = scale * round(clamp(v / scale, q_min, q_max))`, half to even. Backward (LSQ, Esser et al.
    2020, arXiv 1902.08153): values inside the range pass their gradient on, saturated ones get 0;
    `dq/dscale = round(v / scale) - v / scale` inside, the bound itself outside, times
    `1 / sqrt(N q_max)` for N values to a scale. Nothing but the arguments is saved for backward.

    Args:
        values: any shape and floating dtype; NaN stays NaN, infinities saturate.
        scale: positive, broadcasts over `values`; rounded to `grid.scale_format` here.
        grid: the codes.
        global_scale: the per-tensor factor of NVFP4's scales; None elsewhere.
        pass_saturated: False clips the gradient of saturated values to 0; True passes it on as if
            nothing were rounded (straight-through), so that they can come back.
        log_step: where given, the scale is `scale * exp(log_step)` and its gradient goes here: the
            product is made anew in backward, not kept.

    >>> from compress.quantize.grid import Grid
    >>> int4 = Grid(kind="int", q_min=-8.0, q_max=7.0)
    >>> fake_quantize(torch.tensor([0.0, 0.14, 9.0]), torch.tensor([0.1]), grid=int4)
    tensor([0.0000, 0.1000, 0.7000])
    """
    return _FakeQuantize.apply(values, scale, log_step, global_scale, grid, pass_saturated)  # type: ignore[no-any-return, no-untyped-call]


def fake_quantize_dynamic(
    values: Tensor, *, grid: Grid, global_scale: Tensor | None = None
) -> Tensor:
    """Each last-dimension row rounded with a scale of its own, `max |v| / half_range`.

    The scale is a function of the row, so nothing saturates and the gradient passes unchanged
    (straight-through, Bengio et al. 2013, arXiv 1308.3432). A row of zeros stays zero.

    >>> from compress.quantize.grid import Grid
    >>> int8 = Grid(kind="int", q_min=-128.0, q_max=127.0)
    >>> fake_quantize_dynamic(torch.tensor([[0.0, 1.0, -127.5]]), grid=int8)
    tensor([[   0.,    1., -128.]])
    """
    return _FakeQuantizeDynamic.apply(values, global_scale, grid)  # type: ignore[no-any-return, no-untyped-call]


def quantized(values: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The forward of `fake_quantize`, without gradients; `scale` is taken as it is."""
    used = torch.empty_like(values)
    for out, own, steps in _parts(used, values, scale):
        _quantize_into(out, own, steps, grid)
    return used


def _quantize_into(out: Tensor, values: Tensor, scale: Tensor, grid: Grid) -> None:
    if out.dtype == torch.float32:
        codes = torch.div(values, scale, out=out)
    else:
        codes = values.float().div_(scale)
    grid.round_(codes.clamp_(grid.q_min, grid.q_max)).mul_(scale)
    if codes is not out:
        out.copy_(codes)


def _parts(values: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of these that fit a core's cache; they are whole off the CPU or when compiling.

    What has other leading dimensions than `values` (a scale that all of it shares) stays whole.
    """
    rows = values.shape[0]
    step = max(1, CACHED_ELEMENTS * rows // max(values.numel(), 1))
    if step >= rows or values.device.type != "cpu" or torch.compiler.is_compiling():
        yield (values, *others)
        return
    cut = [x.dim() == values.dim() and x.shape[0] == rows for x in others]
    for start in range(0, rows, step):
        part = slice(start, start + step)
        yield (
            values[part],
            *(x[part] if c else x for x, c in zip(others, cut, strict=True)),
        )


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        scale: Tensor,
        log_step: Tensor | None,
        global_scale: Tensor | None,
        grid: Grid,
        pass_saturated: bool,
    ) -> Tensor:
        ctx.save_for_backward(values, scale, log_step, global_scale)
        ctx.grid, ctx.pass_saturated = grid, pass_saturated
        used_scale = grid.round_scale(_learned(scale, log_step), global_scale)
        return quantized(values, used_scale, grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        values, base, log_step, global_scale = ctx.saved_tensors
        grid: Grid = ctx.grid
        learned = _learned(base, log_step)
        scale = grid.round_scale(learned, global_scale)
        grad_values = torch.empty_like(grad)
        grad_scale = torch.zeros_like(scale)
        for parts in _parts(grad_values, values, scale, grad, grad_scale):
            own_values, own_scale, own_grad, summed = parts[1:]
            slope = _gradients_into(parts[0], own_values, own_scale, own_grad, grid)
            summed.add_(slope.sum_to_size(summed.shape))
        shared = values.numel() / scale.numel()
        grad_scale *= (shared * grid.q_max) ** -0.5
        passed = grad if ctx.pass_saturated else grad_values
        if log_step is None:
            return passed, grad_scale.to(base.dtype), None, None, None, None
        return passed, None, (grad_scale * learned).to(log_step.dtype), None, None, None


def _learned(scale: Tensor, log_step: Tensor | None) -> Tensor:
    return scale.float() if log_step is None else scale.float() * torch.exp(log_step)


def _gradients_into(
    grad_values: Tensor, values: Tensor, scale: Tensor, grad: Tensor, grid: Grid
) -> Tensor:
    """Writes the values' gradient; returns grad * dq/dscale, not yet summed, in scratch memory."""
    if torch.compiler.is_compiling():  # one fused kernel: no scratch
        steps = values.float() / scale
        codes = steps.clamp(grid.q_min, grid.q_max)
        inside = (codes == steps).to(steps.dtype)
        grad_values.copy_(grad * inside)
        return (grid.round_(codes.clone()) - codes * inside) * grad
    steps, codes, rounded = _scratch(values, count=3)
    torch.div(values, scale, out=steps)
    torch.clamp(steps, grid.q_min, grid.q_max, out=codes)
    # an explicit mask: clamp's own gradient at its bounds changes between torch releases;
    # 0.0 and 1.0, written over `steps`: boolean arithmetic is eight times slower on a CPU
    inside = torch.eq(steps, codes, out=steps)
    torch.mul(grad, inside, out=grad_values)
    return grid.rounded(codes, out=rounded).addcmul_(codes, inside, value=-1).mul_(grad)


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.flat = torch.empty(0)
        self.views: dict[tuple[int, ...], list[Tensor]] = {}


_BUFFERS = _Buffers()


def _scratch(like: Tensor, *, count: int) -> list[Tensor]:
    """fp32 tensors of this shape; on a CPU the same memory each time.

    There, fresh memory costs more than the arithmetic: every page is cleared by the kernel.
    """
    if like.device.type != "cpu":
        return [torch.empty_like(like, dtype=torch.float32) for _ in range(count)]
    key = (count, *like.shape)
    if key not in _BUFFERS.views:
        size = like.numel()
        if _BUFFERS.flat.numel() < count * size:
            _BUFFERS.flat, _BUFFERS.views = torch.empty(count * size), {}
        if len(_BUFFERS.views) >= KNOWN_SHAPES:  # activations may have a new length each batch
            _BUFFERS.views = {}
        flat = _BUFFERS.flat[: count * size].view(count, size)
        _BUFFERS.views[key] = [row.view(like.shape) for row in flat]
    return _BUFFERS.views[key]


class _FakeQuantizeDynamic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, global_scale: Tensor | None, grid: Grid) -> Tensor:
        rows = values.reshape(-1, values.shape[-1])
        used = torch.empty_like(rows)
        for out, own in _parts(used, rows):
            largest = torch.maximum(own.amax(-1, keepdim=True), own.amin(-1, keepdim=True).neg_())
            scale = grid.round_scale(grid.scale_of(largest), global_scale)
            _quantize_into(out, own, scale, grid)
        return used.view(values.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad, None, None
