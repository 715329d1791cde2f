"""The one loss core: logits in chunks of rows, their gradient computed in the forward pass.

Neither the student's nor the teacher's logits ever exist for all tokens at once.

Legend: B sequences, L positions, N rows that count, C rows of a chunk, V vocabulary, H hidden.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress.contract import LogitChunk, LogitTerm, Step

CHUNK_ELEMENTS = 1 << 20
"""Logits held at once by default: 4 MB in fp32, about what a core's cache holds."""


def head_losses(
    step: Step, terms: Mapping[str, LogitTerm], *, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of logit terms (with gradient), and each weighted term's value (without).

    Sums are divided by `step.count`. Rows without a label are never projected.
    """
    active = {name: term for name, term in terms.items() if term.weight != 0.0}
    hidden_NH = step.student.hidden_BLH.flatten(0, 1)[step.rows_N]
    head = step.student.head
    total, values = _ChunkedHead.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight_VH, head.bias_V, step, active, chunk_elements
    )
    named = dict(zip(active, values.unbind(), strict=True)) if active else {}
    return total, named


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        step: Step,
        terms: Mapping[str, LogitTerm],
        chunk_elements: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.needs = ctx.needs_input_grad[:3]
        device = hidden_NH.device
        dtype = (
            torch.get_autocast_dtype(device.type)
            if torch.is_autocast_enabled(device.type)
            else hidden_NH.dtype
        )
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            used_VH = weight_VH.to(dtype)
            grad_hidden_NH = torch.empty_like(hidden_NH) if ctx.needs[0] else None
            grad_weight_VH = (
                torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs[1] else None
            )
            grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if ctx.needs[2] else None  # type: ignore[arg-type]
            values = torch.zeros(len(terms), device=device)
            rows_per_chunk = max(1, chunk_elements // weight_VH.shape[0])
            for start in range(0, hidden_NH.shape[0], rows_per_chunk):
                part = slice(start, start + rows_per_chunk)
                hidden_CH = hidden_NH[part].to(dtype)
                logits_CV = (hidden_CH @ used_VH.T).float()
                if bias_V is not None:
                    logits_CV += bias_V
                chunk = LogitChunk(
                    logits_CV=logits_CV, labels_C=step.labels_N[part], rows_C=step.rows_N[part]
                )
                gradient_CV = torch.zeros_like(logits_CV) if not terms else None
                for index, term in enumerate(terms.values()):
                    value, gradient = term(chunk)
                    values[index] += term.weight * value
                    gradient = gradient.mul_(term.weight)
                    gradient_CV = gradient if gradient_CV is None else gradient_CV.add_(gradient)
                assert gradient_CV is not None
                if grad_hidden_NH is not None:
                    grad_hidden_NH[part] = gradient_CV.to(dtype) @ used_VH
                if grad_weight_VH is not None:
                    grad_weight_VH += gradient_CV.to(dtype).T @ hidden_CH
                if grad_bias_V is not None:
                    grad_bias_V += gradient_CV.sum(0)
            count = step.count
            values = values / count
            for gradient_ in (grad_hidden_NH, grad_weight_VH, grad_bias_V):
                if gradient_ is not None:
                    gradient_ /= count
        ctx.save_for_backward(grad_hidden_NH, grad_weight_VH, grad_bias_V)
        ctx.mark_non_differentiable(values)
        return values.sum(), values

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _grad_values: Tensor) -> Any:  # type: ignore[override]
        scaled = [None if g is None else g * grad_total for g in ctx.saved_tensors]
        return (*scaled, None, None, None)
