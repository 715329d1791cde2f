"""Logits of a reloaded program beside those of the trained student, on two shapes of input."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from compress.errors import ExportMismatch
from compress.export.onnx_program import Logits
from compress.export.plan import ExportPlan
from compress.export.pt2 import trained_reference
from compress.export.reload import LARGEST_TOLERANCE, MEAN_TOLERANCE, TOLERANCE, two_shapes


@torch.no_grad()
def compare_program(
    student: nn.Module, program: ExportedProgram, plan: ExportPlan, *, dtype: torch.dtype,
    batch: Mapping[str, Tensor] | None = None,
) -> float:  # fmt: skip
    """The largest difference of outputs; the student runs by its own transforms, in `dtype`.

    Both compute the same sums in one order, so that outputs agree to `TOLERANCE` (in half precision
    to four roundings). Where inputs are rounded, one on the edge between two codes may fall to
    either side: the mean then stays within `MEAN_TOLERANCE`.

    Raises:
        ExportMismatch: outputs have another shape or lie too far apart; says how far.
    """
    ours, theirs = Logits(trained_reference(student, dtype=dtype)), program.module()
    largest = 0.0
    for inputs in two_shapes(student, batch):
        told, held = ours(**inputs).float(), theirs(**inputs).float()
        if told.shape != held.shape:
            raise ExportMismatch(f"outputs {tuple(held.shape)} instead of {tuple(told.shape)}")
        size = max(1.0, float(told.abs().max()))
        gap, mean = float((told - held).abs().max()), float((told - held).abs().mean())
        exact = max(TOLERANCE, 4 * torch.finfo(dtype).eps) * size
        flips = any(layer.inputs for layer in plan.quantized) and (
            mean <= MEAN_TOLERANCE * size and gap <= LARGEST_TOLERANCE * size
        )
        if not gap <= exact and not flips:
            raise ExportMismatch(
                f"the reloaded program's outputs differ by {mean:.3g} on average and up to "
                f"{gap:.3g}; allowed {exact:.3g}"
            )
        largest = max(largest, gap)
    return largest
