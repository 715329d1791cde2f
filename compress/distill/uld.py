"""Distillation between vocabularies that share nothing: sorted probabilities are compared.

Legend: C rows, V student vocabulary, U teacher vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.contract import LogitChunk
from compress.distill.teacher_rows import TeacherRows
from compress.distill.terms import on_rows, scaled


@dataclass(frozen=True, kw_only=True)
class SortedTerm:
    """Wasserstein distance of sorted probabilities, sum_i |p_(i) - q_(i)| (ULD).

    Boizard et al. 2024, arXiv 2402.12030, eq. 5. It compares how sure both are and how the rest
    spreads, never which token is meant; the shorter vocabulary is filled up with zeros.

    Args:
        teacher: where its logits come from.
        weight: factor in the total.
        temperature: applied to both.
        scale: factor of value and gradient, T^2 or 1.0.
    """

    teacher: TeacherRows
    weight: float = 1.0
    temperature: float = 1.0
    scale: float = 1.0

    def __call__(self, chunk: LogitChunk) -> tuple[Tensor, Tensor]:
        """Summed distance and its gradient (C, V)."""
        log_p = chunk.log_probs(self.temperature)
        return on_rows(self._compare, chunk, log_p, kept=self.teacher.covered(chunk.rows_C))

    def _compare(self, log_p: Tensor, rows_K: Tensor) -> tuple[Tensor, Tensor]:
        size = self.teacher.vocab_size
        log_q = self.teacher.log_probs(rows_K, size=size, temperature=self.temperature)
        value_C, by_p = sorted_distance(log_p.exp(), log_q.exp_().to(log_p.dtype))
        by_log_p = by_p.mul_(log_p.exp())
        gradient = by_log_p - log_p.exp() * by_log_p.sum(1, keepdim=True)
        return scaled(value_C.sum(), gradient.div_(self.temperature), self.scale)


def sorted_distance(p_CV: Tensor, q_CU: Tensor) -> tuple[Tensor, Tensor]:
    """Sum |sorted p - sorted q| of each row, and its derivative by p.

    >>> p, q = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.0, 0.3, 0.7]])
    >>> sorted_distance(p, q)[0].item()
    0.0
    """
    width = max(p_CV.shape[1], q_CU.shape[1])
    sorted_p, order = p_CV.sort(dim=1, descending=True)
    sorted_q = q_CU.sort(dim=1, descending=True).values
    gap = _padded(sorted_p, width) - _padded(sorted_q, width)
    by_p = torch.zeros_like(p_CV).scatter_(1, order, gap[:, : p_CV.shape[1]].sign())
    return gap.abs().sum(1), by_p


def _padded(rows: Tensor, width: int) -> Tensor:
    return nn.functional.pad(rows, (0, width - rows.shape[1]))
