"""GPTQ: round one column after another, the later columns making up for each one's error.

Legend: O output rows, I input columns, N positions.
"""

import torch
from torch import Tensor

from compress.errors import BadInput
from compress.quantize.fake_quantize import quantized
from compress.quantize.grid import Grid

COLUMNS = 128
"""Columns whose errors are spread among themselves at once, then to all the later ones."""


def error_feedback(
    weight_OI: Tensor,
    moment_II: Tensor,
    step_OI: Tensor,
    grid: Grid,
    *,
    damping: float = 0.01,
    mask_OI: Tensor | None = None,
) -> Tensor:
    """Weights whose nearest codes nearly minimise `|| (W - Q) X ||^2`, not `|| W - Q ||^2`.

    GPTQ (Frantar et al. 2023, arXiv 2210.17323), columns of the largest input first, scales given
    beforehand. What comes back is each weight as it stood when it was rounded: its nearest code is
    GPTQ's, and training goes on from there. With a mask, what the zeros cost is spread as well
    (SparseGPT, arXiv 2301.00774).

    Args:
        weight_OI: the dense weight.
        moment_II: `X X^T / N` of the layer's inputs.
        step_OI: the size of one code for each weight (scales, spread out).
        grid: the codes.
        damping: share of the mean of `moment_II`'s diagonal added to it: towards 0.0 it trusts
            few samples too much, large values end at rounding to nearest.
        mask_OI: True where a weight lives; None everywhere.

    Raises:
        BadInput: the moments are not finite.
    """
    diagonal = moment_II.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise BadInput("init=gptq: the calibration inputs hold NaN or infinities")
    order = diagonal.argsort(descending=True)
    back = order.argsort()
    factor_II = _factor(moment_II[order][:, order], damping)
    work, step = weight_OI.float()[:, order], step_OI[:, order]
    mask = None if mask_OI is None else mask_OI[:, order].to(work.dtype)
    for start in range(0, work.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        spread = _round_columns(
            work[:, part], step[:, part], factor_II[part, part], grid,
            None if mask is None else mask[:, part],
        )  # fmt: skip
        work[:, start + COLUMNS :] -= spread @ factor_II[part, start + COLUMNS :]
    if mask is not None:
        work *= mask
    return work[:, back].to(weight_OI.dtype)


def _factor(moment_II: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the damped moment's inverse, fp32."""
    moment = moment_II.double()
    mean = moment.diagonal().mean()
    moment.diagonal().add_(damping * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


def _round_columns(
    work_OC: Tensor, step_OC: Tensor, factor_CC: Tensor, grid: Grid, mask_OC: Tensor | None
) -> Tensor:
    """Rounds C columns in turn, moving the rest of them; returns the errors to spread further."""
    errors = torch.empty_like(work_OC)
    for column in range(work_OC.shape[1]):
        value = work_OC[:, column]
        alive = value if mask_OC is None else value * mask_OC[:, column]
        rounded = quantized(alive[:, None], step_OC[:, column, None], grid)[:, 0]
        errors[:, column] = (value - rounded) / factor_CC[column, column]
        later = slice(column + 1, None)
        work_OC[:, later] -= errors[:, column, None] * factor_CC[column, later]
    return errors
