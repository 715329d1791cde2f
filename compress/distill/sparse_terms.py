"""Terms that compare with K tokens a position: stored, sampled, or a dense teacher's likeliest.

Legend: B sequences, L positions, C rows of a chunk, K tokens, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from compress.contract import LogitChunk, TopKSignal
from compress.distill.divergences import Divergence, forward_kl, logits_gradient
from compress.distill.teacher_rows import TeacherRows
from compress.distill.terms import on_rows, scaled

Tail = Literal["bucket", "renormalize"]
LEAST_TAIL = 1e-7
"""Below this a tail cannot be told from the rounding of the K probabilities in fp32."""
NEVER = -1e9
"""A log-probability whose exponential is 0.0, and whose difference to itself is, unlike -inf's."""

Targets = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From rows (C,) to tokens (C, K) and log-probabilities (C, K) at the term's temperature.

A log-probability of -inf says that a row has fewer than K tokens: that entry's token is any."""


@dataclass(frozen=True, kw_only=True)
class TopKTerm:
    """A divergence over the teacher's K likeliest tokens and what is left of the vocabulary.

    `tail="bucket"`: K + 1 outcomes, the last one "any other token"; the student's mass outside
    the K is compared as a whole, so it cannot drift there unseen. `tail="renormalize"`: both are
    normalised over the K alone, the rest is free.

    Args:
        targets: rows to tokens and log-probabilities; the tokens of a row are distinct.
        divergence: one of `compress.distill.divergences`.
        weight: factor in the total.
        temperature: of the student's distribution; the targets come at it already.
        scale: factor of value and gradient, T^2 or 1.0.
        tail: what becomes of the other tokens.
        size: tokens that count; None takes the student's whole vocabulary.
        covered: the chunk's rows that have targets (None: all), see `TeacherRows.covered`.
    """

    targets: Targets
    divergence: Divergence = field(default=forward_kl)
    weight: float = 1.0
    temperature: float = 1.0
    scale: float = 1.0
    tail: Tail = "bucket"
    size: int | None = None
    covered: Callable[[Tensor], Tensor | None] = lambda _rows: None

    def __call__(self, chunk: LogitChunk) -> tuple[Tensor, Tensor]:
        """Summed divergence and its gradient (C, V)."""
        compare = self._with_tail if self.tail == "bucket" else self._without_tail
        log_p = chunk.log_probs(self.temperature, size=self.size)
        return on_rows(compare, chunk, log_p, kept=self.covered(chunk.rows_C))

    def _with_tail(self, log_p: Tensor, rows_C: Tensor) -> tuple[Tensor, Tensor]:
        tokens_CK, log_q_CK = self.targets(rows_C)
        empty_CK = log_q_CK == -math.inf
        gradient_CV = log_p.exp()
        p_CK = gradient_CV.gather(1, tokens_CK).masked_fill_(empty_CK, 0.0)
        # summed without the K, not as 1 - sum: the difference would be rounding where K is sure;
        # added, not written: an empty entry's token may be another entry's too
        gradient_CV.scatter_add_(1, tokens_CK, -p_CK)
        p_tail_C1 = gradient_CV.sum(1, keepdim=True).clamp_(min=LEAST_TAIL)
        q_tail_C1 = 1.0 - log_q_CK.exp().sum(1, keepdim=True)
        log_p_CK = log_p.gather(1, tokens_CK).masked_fill_(empty_CK, NEVER)
        log_q_CK = log_q_CK.masked_fill(empty_CK, NEVER)
        few_p = torch.cat([log_p_CK, p_tail_C1.log()], dim=1)
        few_q = torch.cat([log_q_CK, q_tail_C1.clamp_(min=LEAST_TAIL).log_()], dim=1)
        value_C, by_log_p, total = self.divergence(few_p, few_q.to(few_p.dtype))
        gradient_CV *= by_log_p[:, -1:] / p_tail_C1 - total
        gradient_CV.scatter_add_(1, tokens_CK, by_log_p[:, :-1] - p_CK * total)
        return scaled(value_C.sum(), gradient_CV.div_(self.temperature), self.scale)

    def _without_tail(self, log_p: Tensor, rows_C: Tensor) -> tuple[Tensor, Tensor]:
        tokens_CK, log_q_CK = self.targets(rows_C)
        empty_CK = log_q_CK == -math.inf
        few_p = log_p.gather(1, tokens_CK).masked_fill_(empty_CK, NEVER).log_softmax(1)
        few_q = log_q_CK.to(few_p.dtype).masked_fill(empty_CK, NEVER).log_softmax(1)
        slope = self.divergence(few_p, few_q)
        gradient = logits_gradient(slope, few_p, temperature=self.temperature)
        spread = torch.zeros_like(log_p).scatter_add_(1, tokens_CK, gradient)
        return scaled(slope.value_C.sum(), spread, self.scale)


@dataclass(frozen=True, kw_only=True)
class SampledTerm:
    """Forward KL to tokens drawn from the teacher: sum_k f_k (log f_k - log p_k), f = count / K.

    The draws' frequencies stand for q: the gradient p - f is the full one on average, which the
    truncated top K is not (random-sampling KD, Anshumann et al. 2025, arXiv 2503.16870).

    Args:
        targets: rows to tokens and log-frequencies; -inf fills up rows with fewer tokens.
        weight: factor in the total.
        size: tokens that count; None takes the student's whole vocabulary.
    """

    targets: Targets
    weight: float = 1.0
    size: int | None = None

    def __call__(self, chunk: LogitChunk) -> tuple[Tensor, Tensor]:
        """Summed divergence and p - f, (C, V)."""
        return on_rows(self._compare, chunk, chunk.log_probs(size=self.size), kept=None)

    def _compare(self, log_p: Tensor, rows_C: Tensor) -> tuple[Tensor, Tensor]:
        tokens_CK, log_f_CK = self.targets(rows_C)
        log_f_CK = log_f_CK.to(log_p.dtype)
        f_CK = log_f_CK.exp()
        gap_CK = log_f_CK - log_p.gather(1, tokens_CK)
        gradient_CV = log_p.exp().scatter_add_(1, tokens_CK, -f_CK)
        # where every draw was cut off nothing is known, and nothing is taught
        gradient_CV *= (f_CK > 0).any(1, keepdim=True)
        return torch.where(f_CK > 0, f_CK * gap_CK, 0.0).sum(), gradient_CV


def stored_targets(
    signal: TopKSignal, *, size: int, top_k: int = 0, temperature: float = 1.0
) -> Targets:
    """Targets out of a signal that covers every position of the batch.

    At a temperature other than 1.0 they are not normalised: for `tail="renormalize"` alone.

    Args:
        signal: what is stored, in any order.
        size: tokens that count; the share of stored ones beyond it goes to all others.
        top_k: likeliest tokens to keep, at most as many as are stored; 0 keeps them all.
        temperature: of the distribution to compare with.
    """
    tokens = signal.tokens_BLK.flatten(0, 1)
    log_probs = signal.log_probs_BLK.flatten(0, 1)

    def targets(rows_C: Tensor) -> tuple[Tensor, Tensor]:
        tokens_CK = tokens.index_select(0, rows_C).long()
        log_q_CK = log_probs.index_select(0, rows_C).float()
        tokens_CK, log_q_CK = _within(tokens_CK, log_q_CK, size=size)
        if 0 < top_k < tokens_CK.shape[1]:
            log_q_CK, order_CK = log_q_CK.topk(top_k, dim=1)
            tokens_CK = tokens_CK.gather(1, order_CK)
        return tokens_CK, log_q_CK / temperature

    return targets


def _within(tokens_CK: Tensor, log_q_CK: Tensor, *, size: int) -> tuple[Tensor, Tensor]:
    """The tokens below `size`, normalised as if the stored ones beyond it did not exist."""
    beyond_CK = tokens_CK >= size
    share_C1 = log_q_CK.exp().masked_fill_(~beyond_CK, 0.0).sum(1, keepdim=True)
    log_q_CK = log_q_CK - torch.log1p(-share_C1.clamp_(max=1.0 - LEAST_TAIL))
    return tokens_CK.masked_fill(beyond_CK, 0), log_q_CK.masked_fill_(beyond_CK, -math.inf)


def largest_targets(teacher: TeacherRows, *, k: int, size: int, temperature: float) -> Targets:
    """The K likeliest tokens of a dense teacher, at this temperature."""

    def targets(rows_C: Tensor) -> tuple[Tensor, Tensor]:
        log_q = teacher.log_probs(rows_C, size=size, temperature=temperature)
        log_q_CK, tokens_CK = log_q.topk(min(k, size), dim=1)
        return tokens_CK, log_q_CK

    return targets
