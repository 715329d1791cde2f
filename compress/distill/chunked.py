"""The one loss core: logits in chunks of rows, their gradient computed in the forward pass.

Neither the student's nor the teacher's logits ever exist for all tokens at once.

Legend: B sequences, L positions, N rows that count, C rows of a chunk, V vocabulary, H hidden.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from compress.contract import LogitChunk, LogitTerm, Step
from compress.distill.terms import PullTerm

CHUNK_ELEMENTS = 3 << 20
"""Logits held at once by default: 12 MB in fp32, the least memory of what is fast on a CPU
(`benchmarks/distill_loss.py`)."""


def head_losses(
    step: Step, terms: Mapping[str, LogitTerm], *, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of logit terms (with gradient), and each weighted term's value (without).

    Sums are divided by `step.count`. Rows without a label are never projected. The matrix
    products run in the autocast dtype, softmax and sums in fp32. Backward runs once: the
    gradients are made here, scaled in place there, and given away.

    Args:
        step: student trace, labels, count.
        terms: by name; those of weight 0.0 cost nothing and give no value.
        chunk_elements: logits held at once; small saves memory, large feeds the matrix products.
    """
    active = {name: term for name, term in terms.items() if term.weight != 0.0}
    hidden_NH = step.student.hidden_BLH.flatten(0, 1).index_select(0, step.rows_N)
    head = step.student.head
    total, values = _ChunkedHead.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight_VH, head.bias_V, step, active, chunk_elements
    )
    return total, dict(zip(active, values.unbind(), strict=True)) if active else {}


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
        kind = hidden_NH.device.type
        low = torch.is_autocast_enabled(kind) and hidden_NH.dtype != torch.float64
        dtype = torch.get_autocast_dtype(kind) if low else hidden_NH.dtype
        with torch.autocast(kind, enabled=False):
            gradients = _Gradients(ctx.needs_input_grad, hidden_NH, weight_VH, bias_V, dtype)
            used_VH = weight_VH.to(dtype)
            values = torch.zeros(len(terms), device=hidden_NH.device, dtype=_exact(dtype))
            rows_per_chunk = max(1, chunk_elements // weight_VH.shape[0])
            for start in range(0, hidden_NH.shape[0] if terms else 0, rows_per_chunk):
                part = slice(start, start + rows_per_chunk)
                hidden_CH = hidden_NH[part].to(dtype)
                chunk = LogitChunk(
                    logits_CV=_logits(hidden_CH, used_VH, bias_V),
                    labels_C=step.labels_N[part], rows_C=step.rows_N[part],
                )  # fmt: skip
                gradient_CV = _evaluate(terms, chunk, values)
                del chunk  # before the products: its tensors are the peak
                gradients.add(part, gradient_CV, hidden_CH, used_VH)
                del gradient_CV  # before the next chunk's logits
        ctx.gradients, ctx.count = gradients, step.count
        values /= step.count
        ctx.mark_non_differentiable(values)
        return values.sum(), values

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_total: Tensor, _grad_values: Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("the chunked loss gives its gradients away: backward runs once")
        gradients, ctx.gradients = ctx.gradients, None
        # scaled here, not in the chunks: p - q of size 1 / count would underflow in fp16
        return (*gradients.scaled(grad_total / ctx.count), None, None, None)


def _evaluate(terms: Mapping[str, LogitTerm], chunk: LogitChunk, values: Tensor) -> Tensor:
    """Adds each weighted term to `values`; the weighted sum of their gradients (C, V).

    Terms of gradient p - target (`PullTerm`) share one p.
    """
    pulls = [isinstance(t, PullTerm) and t.pulls(chunk) for t in terms.values()]
    if all(pulls):
        chunk.forget_logits()
    whole: Tensor | None = None
    if any(pulls):
        share = sum(t.weight for t, pull in zip(terms.values(), pulls, strict=True) if pull)
        whole = chunk.log_probs().exp()
        whole = whole if share == 1.0 else whole.mul_(share)
    for index, (term, pull) in enumerate(zip(terms.values(), pulls, strict=True)):
        if pull:
            assert isinstance(term, PullTerm) and whole is not None
            values[index] += term.weight * term.pull(chunk, whole)
            continue
        value, gradient = term(chunk)
        values[index] += term.weight * value
        if whole is None:
            whole = gradient if term.weight == 1.0 else gradient.mul_(term.weight)
        else:
            whole.add_(gradient, alpha=term.weight)
    assert whole is not None
    return whole


def _logits(hidden_CH: Tensor, used_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    logits_CV = (hidden_CH @ used_VH.T).to(_exact(hidden_CH.dtype))
    return logits_CV if bias_V is None else logits_CV.add_(bias_V)


class _Gradients:
    """Collects the gradients of the head's input, weight and bias, where they are needed."""

    def __init__(
        self, needs: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        exact, self.dtype = _exact(dtype), dtype
        self.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        self.hidden_NH = torch.zeros_like(hidden) if needs[0] else None
        self.weight_VH = torch.zeros_like(weight, dtype=exact) if needs[1] else None
        self.bias_V = torch.zeros_like(bias, dtype=exact) if needs[2] else None  # type: ignore[arg-type]

    def add(self, part: slice, gradient_CV: Tensor, hidden_CH: Tensor, used_VH: Tensor) -> None:
        """Take in one chunk."""
        if self.bias_V is not None:
            self.bias_V += gradient_CV.sum(0)
        gradient_CV = gradient_CV.to(self.dtype)
        if self.hidden_NH is not None:
            self.hidden_NH[part] = gradient_CV @ used_VH
        if self.weight_VH is None:
            return
        if self.weight_VH.dtype == self.dtype:
            self.weight_VH.addmm_(gradient_CV.T, hidden_CH)
        else:
            self.weight_VH += gradient_CV.T @ hidden_CH  # products in low, sums in full precision

    def scaled(self, factor: Tensor) -> tuple[Tensor | None, ...]:
        """All of them times `factor`, in place, in the dtype of what they belong to."""
        collected = (self.hidden_NH, self.weight_VH, self.bias_V)
        return tuple(
            None if g is None else g.mul_(factor).to(dtype)
            for g, dtype in zip(collected, self.dtypes, strict=True)
        )


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
