"""Rounding to a grid in training: one autograd function, its gradients written out.

Everything is computed in fp32 whatever the weight's dtype: dividing bf16 by a bf16 scale flips one
int4 code in a hundred.
"""

import threading
from typing import Any

import torch
from torch import Tensor

from compress.quantize.grid import Grid

CACHED_ELEMENTS = 1 << 17
"""Values worked on at once on a CPU: a dozen passes over them stay in a core's cache."""


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
    for part in _parts(values, scale):
        _quantize_into(
            used[part], values[part], scale[part] if _follows(scale, values) else scale, grid
        )
    return used


def _quantize_into(out: Tensor, values: Tensor, scale: Tensor, grid: Grid) -> None:
    if out.dtype == torch.float32:
        codes = torch.div(values, scale, out=out)
    else:
        codes = values.float().div_(scale)
    grid.round_(codes.clamp_(grid.q_min, grid.q_max)).mul_(scale)
    if codes is not out:
        out.copy_(codes)


def _follows(scale: Tensor, values: Tensor) -> bool:
    return scale.dim() == values.dim() and scale.shape[0] == values.shape[0]


def _parts(values: Tensor, scale: Tensor) -> list[slice]:
    """Leading-dimension slices that fit a core's cache; one slice off the CPU or when compiling."""
    rows = values.shape[0]
    if values.device.type != "cpu" or torch.compiler.is_compiling() or rows == 0:
        return [slice(0, rows)]
    step = max(1, CACHED_ELEMENTS * rows // max(values.numel(), 1))
    return [slice(start, start + step) for start in range(0, rows, step)]


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
        follows = _follows(scale, values)
        for part in _parts(values, scale):
            own = scale[part] if follows else scale
            slope = _gradients_into(grad_values[part], values[part], own, grad[part], grid)
            (grad_scale[part] if follows else grad_scale).add_(slope.sum_to_size(own.shape))
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
    steps, codes, passed = _scratch(values, count=3)
    torch.div(values, scale, out=steps)
    torch.clamp(steps, grid.q_min, grid.q_max, out=codes)
    # an explicit mask: clamp's own gradient at its bounds changes between torch releases;
    # 0.0 and 1.0, written over `steps`: boolean arithmetic is eight times slower on a CPU
    inside = torch.eq(steps, codes, out=steps)
    torch.mul(grad, inside, out=grad_values)
    torch.mul(codes, inside, out=passed)
    return grid.round_(codes).sub_(passed).mul_(grad)


class _Buffers(threading.local):
    flat = torch.empty(0)


_BUFFERS = _Buffers()


def _scratch(like: Tensor, *, count: int) -> list[Tensor]:
    """fp32 tensors of this shape; on a CPU the same memory each time.

    There, fresh memory costs more than the arithmetic: every page is cleared by the kernel.
    """
    if like.device.type != "cpu":
        return [torch.empty_like(like, dtype=torch.float32) for _ in range(count)]
    size = like.numel()
    if _BUFFERS.flat.numel() < count * size:
        _BUFFERS.flat = torch.empty(count * size)
    return [_BUFFERS.flat[i * size : (i + 1) * size].view(like.shape) for i in range(count)]


class _FakeQuantizeDynamic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, global_scale: Tensor | None, grid: Grid) -> Tensor:
        rows = values.reshape(-1, values.shape[-1])
        used = torch.empty_like(rows)
        for part in _parts(rows, rows):
            own = rows[part]
            largest = torch.maximum(own.amax(-1, keepdim=True), own.amin(-1, keepdim=True).neg_())
            scale = grid.round_scale(grid.scale_of(largest), global_scale)
            _quantize_into(used[part], own, scale, grid)
        return used.view(values.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad, None, None
