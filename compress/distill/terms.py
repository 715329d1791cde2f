"""Loss terms on logits: each gives its summed value over a chunk and its gradient, no autograd.

The labels' term and the dense teacher's are here; sparse teachers' are in `sparse_terms`.

Legend: C rows of a chunk, K rows of these that the teacher covers, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from compress.contract import LogitChunk
from compress.distill.divergences import Divergence, forward_kl, logits_gradient
from compress.distill.teacher_rows import TeacherRows


@runtime_checkable
class PullTerm(Protocol):
    """A term whose gradient is p - target: several of them share one pass for p."""

    def pulls(self, chunk: LogitChunk) -> bool:
        """Whether the gradient has that form on this chunk."""
        ...

    def pull(self, chunk: LogitChunk, gradient_CV: Tensor) -> Tensor:
        """Takes weight * target from `gradient_CV`, in place; answers the summed value."""
        ...


@dataclass(frozen=True, kw_only=True)
class LabelLoss:
    """Cross-entropy with the next token, in nats.

    Args:
        weight: factor in the total; 0.0 leaves the labels unused.
    """

    weight: float = 1.0

    def __call__(self, chunk: LogitChunk) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy and softmax(logits) - onehot(label), (C, V)."""
        log_probs_CV = chunk.log_probs()
        picked_C = log_probs_CV.gather(1, chunk.labels_C[:, None])
        gradient_CV = log_probs_CV.exp()
        gradient_CV.scatter_add_(1, chunk.labels_C[:, None], -torch.ones_like(picked_C))
        return -picked_C.sum(), gradient_CV

    def pulls(self, chunk: LogitChunk) -> bool:
        """Always."""
        return True

    def pull(self, chunk: LogitChunk, gradient_CV: Tensor) -> Tensor:
        """The target is one label a row."""
        picked_C1 = chunk.log_probs().gather(1, chunk.labels_C[:, None])
        taken_C1 = torch.full_like(picked_C1, -self.weight)
        gradient_CV.scatter_add_(1, chunk.labels_C[:, None], taken_C1)
        return -picked_C1.sum()


@dataclass(frozen=True, kw_only=True)
class LabelsOfSome:
    """Cross-entropy with the next token, of some sequences alone.

    Args:
        sequences_B: True where the labels count.
        length: positions of a sequence.
        weight: factor in the total.
    """

    sequences_B: Tensor
    length: int
    weight: float = 1.0

    def __call__(self, chunk: LogitChunk) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy and its gradient (C, V), zero for the other sequences."""
        kept = self.sequences_B[chunk.rows_C // self.length].nonzero().squeeze(-1)
        log_p = chunk.log_probs()[kept]
        labels_K1 = chunk.labels_C[kept][:, None]
        picked_K1 = log_p.gather(1, labels_K1)
        gradient = log_p.exp().scatter_add_(1, labels_K1, -torch.ones_like(picked_K1))
        return -picked_K1.sum(), torch.zeros_like(chunk.logits_CV).index_copy_(0, kept, gradient)


@dataclass(frozen=True, kw_only=True)
class DenseTerm:
    """A divergence to a teacher whose whole vocabulary is known.

    At temperature T both distributions are softmax(z / T). Its gradient shrinks like 1 / T^2, so
    Hinton et al. 2015 (arXiv 1503.02531) multiply the loss by T^2: that is `scale`.

    Args:
        teacher: where its logits come from.
        divergence: one of `compress.distill.divergences`.
        weight: factor in the total; 0.0 leaves the teacher unused.
        temperature: 1.0 compares the distributions themselves; larger ones weigh the tail more.
        scale: factor of value and gradient, T^2 or 1.0.
        size: tokens that both know, see `common_vocabulary`; None takes the student's all.
    """

    teacher: TeacherRows
    divergence: Divergence = field(default=forward_kl)
    weight: float = 1.0
    temperature: float = 1.0
    scale: float = 1.0
    size: int | None = None

    def __call__(self, chunk: LogitChunk) -> tuple[Tensor, Tensor]:
        """Summed divergence and its gradient (C, V); rows the teacher did not see give zero."""
        log_p = chunk.log_probs(self.temperature, size=self.size)
        return on_rows(self._compare, chunk, log_p, kept=self.teacher.covered(chunk.rows_C))

    def pulls(self, chunk: LogitChunk) -> bool:
        """Forward KL as it stands, over the whole vocabulary, of rows that the teacher all saw."""
        plain = self.divergence is forward_kl and self.temperature == self.scale == 1.0
        whole = self.size in (None, chunk.logits_CV.shape[1])
        return plain and whole and self.teacher.covered(chunk.rows_C) is None

    def pull(self, chunk: LogitChunk, gradient_CV: Tensor) -> Tensor:
        """The target is the teacher's distribution."""
        log_p = chunk.log_probs()
        log_q = self.teacher.log_probs(chunk.rows_C, size=log_p.shape[1])
        q = log_q.exp()
        gradient_CV.sub_(q, alpha=self.weight)
        value: Tensor = torch.linalg.vecdot(q, log_q.sub_(log_p)).sum()
        return value

    def _compare(self, log_p: Tensor, rows_K: Tensor) -> tuple[Tensor, Tensor]:
        log_q = self.teacher.log_probs(rows_K, size=log_p.shape[1], temperature=self.temperature)
        slope = self.divergence(log_p, log_q)
        gradient = logits_gradient(slope, log_p, temperature=self.temperature)
        return scaled(slope.value_C.sum(), gradient, self.scale)


def on_rows(
    compare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    chunk: LogitChunk,
    log_p: Tensor,
    *,
    kept: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`compare(log_p, rows)` for the kept rows, its gradient zero for the other rows and tokens.

    Args:
        compare: gives the summed value and the gradient of the rows it is shown.
        chunk: the chunk that `log_p` comes from.
        log_p: (C, size), size at most V.
        kept: indices into the chunk's rows; None keeps all.
    """
    if kept is None:
        value, gradient = compare(log_p, chunk.rows_C)
        if gradient.shape == chunk.logits_CV.shape:
            return value, gradient
        kept = torch.arange(len(chunk.rows_C), device=chunk.rows_C.device)
    else:
        value, gradient = compare(log_p[kept], chunk.rows_C[kept])
    whole = torch.zeros_like(chunk.logits_CV)
    whole[:, : log_p.shape[1]].index_copy_(0, kept, gradient)
    return value, whole


def scaled(value: Tensor, gradient: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Both times `scale`; the gradient in place."""
    return (value, gradient) if scale == 1.0 else (value * scale, gradient.mul_(scale))
