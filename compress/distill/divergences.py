"""Divergences between two distributions, each with its slope, in closed form.

`log_p` are the student's log-probabilities, `log_q` the teacher's. A divergence gives its value a
row and g = d value / d log_p (p free, not yet tied by the softmax); `logits_gradient` then takes g
through p = softmax(z / T): dz = (g - p * sum(g)) / T.

Every divergence consumes `log_q`: it may be overwritten.

Legend: C rows, V outcomes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from compress.errors import BadInput, did_you_mean


class Slope(NamedTuple):
    """A divergence a row, its derivative by each log p, and that derivative's row sums."""

    value_C: Tensor
    by_log_p_CV: Tensor
    total_C1: Tensor | float


Divergence = Callable[[Tensor, Tensor], Slope]


def logits_gradient(slope: Slope, log_p: Tensor, *, temperature: float = 1.0) -> Tensor:
    """(g - p * sum(g)) / T; a new tensor.

    >>> log_p = torch.log_softmax(torch.tensor([[0.0, 1.0]]), -1)
    >>> logits_gradient(forward_kl(log_p, log_p.clone()), log_p)
    tensor([[0., 0.]])
    """
    gradient = log_p.exp()
    if isinstance(slope.total_C1, Tensor) or slope.total_C1 != -1.0:
        gradient *= -slope.total_C1
    gradient += slope.by_log_p_CV
    return gradient if temperature == 1.0 else gradient.div_(temperature)


def forward_kl(log_p: Tensor, log_q: Tensor) -> Slope:
    """KL(q | p) = sum q log(q / p): the student covers all the teacher holds likely (Hinton 2015).

    >>> half, sure = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> round(forward_kl(half, sure).value_C.item(), 4)
    0.3681
    """
    q = log_q.exp()
    value = torch.linalg.vecdot(q, log_q.sub_(log_p))
    return Slope(value, q.neg_(), -1.0)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Slope:
    """KL(p | q) = sum p log(p / q): the student keeps to what the teacher holds likely.

    Gu et al. 2023 (MiniLLM, arXiv 2306.08543) advise it for small students.
    """
    p = log_p.exp()
    ratio = log_q.neg_().add_(log_p)
    value = torch.linalg.vecdot(p, ratio)
    return Slope(value, p.mul_(ratio.add_(1.0)), value[:, None] + 1.0)


def jensen_shannon(log_p: Tensor, log_q: Tensor, *, beta: float = 0.5) -> Slope:
    """Beta KL(q | m) + (1 - beta) KL(p | m), m = beta q + (1 - beta) p.

    Generalised Jensen-Shannon (Agarwal et al. 2023, GKD, arXiv 2306.13649, eq. 1); bounded.

    Args:
        log_p: student.
        log_q: teacher.
        beta: in (0, 1). Towards 0 it is beta times the forward KL, towards 1 it is (1 - beta)
            times the reverse KL: it vanishes at both ends, so those are asked for by name.
    """
    log_m = _log_mixture(log_p, log_q, share_q=beta)
    value_q = torch.linalg.vecdot(log_q.exp(), log_q.sub_(log_m))
    p, ratio = log_p.exp(), log_m.neg_().add_(log_p)
    value_p = (1.0 - beta) * torch.linalg.vecdot(p, ratio)
    return Slope(beta * value_q + value_p, p.mul_(ratio).mul_(1.0 - beta), value_p[:, None])


def skewed_kl(log_p: Tensor, log_q: Tensor, *, skew: float = 0.1) -> Slope:
    """KL(q | skew q + (1 - skew) p): forward KL whose gradient stays bounded (DistiLLM).

    Ko et al. 2024, arXiv 2402.03898, eq. 3.

    Args:
        log_p: student.
        log_q: teacher.
        skew: in [0, 1); 0.0 is the forward KL, near 1.0 nothing is left to learn.
    """
    log_m = _log_mixture(log_p, log_q, share_q=skew)
    slope = (log_p + log_q).sub_(log_m).exp_().mul_(skew - 1.0)
    value = torch.linalg.vecdot(log_q.exp(), log_q.sub_(log_m))
    return Slope(value, slope, slope.sum(1, keepdim=True))


def skewed_reverse_kl(log_p: Tensor, log_q: Tensor, *, skew: float = 0.1) -> Slope:
    """KL(p | (1 - skew) q + skew p): reverse KL, skewed (DistiLLM, eq. 4).

    Args:
        log_p: student.
        log_q: teacher.
        skew: in [0, 1); 0.0 is the reverse KL, near 1.0 nothing is left to learn.
    """
    log_m = _log_mixture(log_p, log_q, share_q=1.0 - skew)
    p, ratio = log_p.exp(), log_m.neg_().add_(log_p)
    value = torch.linalg.vecdot(p, ratio)
    slope = ratio.exp().mul_(-skew).add_(ratio).add_(1.0).mul_(p)
    return Slope(value, slope, slope.sum(1, keepdim=True))


def total_variation(log_p: Tensor, log_q: Tensor) -> Slope:
    """Sum |p - q| / 2: bounded by 1, blind to tiny probabilities (Wen et al. 2023, 2307.15190)."""
    p = log_p.exp()
    gap = p - log_q.exp_()
    value = 0.5 * torch.linalg.vector_norm(gap, ord=1, dim=1)
    slope = gap.sign_().mul_(p).mul_(0.5)
    return Slope(value, slope, slope.sum(1, keepdim=True))


def divergence_by_name(name: str, *, beta: float = 0.5, skew: float = 0.1) -> Divergence:
    """The divergence of that name with its constant bound.

    Raises:
        BadInput: the name is unknown, or its constant is out of range.
    """
    known: dict[str, Divergence] = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jensen_shannon": partial(jensen_shannon, beta=beta),
        "skewed_kl": partial(skewed_kl, skew=skew),
        "skewed_reverse_kl": partial(skewed_reverse_kl, skew=skew),
        "total_variation": total_variation,
    }
    if name not in known:
        hint = did_you_mean(name, list(known))
        raise BadInput(f"divergence={name!r} is unknown.{hint} Known: {', '.join(known)}")
    if name == "jensen_shannon" and not 0.0 < beta < 1.0:
        raise BadInput(
            f"beta={beta} is outside (0, 1), where jensen_shannon vanishes; "
            "use divergence=forward_kl for beta=0, reverse_kl for beta=1"
        )
    if "skewed" in name and not 0.0 <= skew < 1.0:
        raise BadInput(f"skew={skew} is outside [0, 1): at 1 nothing of the student is compared")
    return known[name]


def _log_mixture(log_p: Tensor, log_q: Tensor, *, share_q: float) -> Tensor:
    log_share_q = math.log(share_q) if share_q > 0 else -math.inf
    log_share_p = math.log1p(-share_q) if share_q < 1 else -math.inf
    # in logs: where both probabilities underflow, the log of their sum would be -inf
    return torch.logaddexp(log_q + log_share_q, log_p + log_share_p)
