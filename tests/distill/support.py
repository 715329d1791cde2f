"""Steps without models: random hidden states and heads, and the same losses by plain autograd."""

import torch
from torch import Tensor

from compress.contract import DenseSignal, Head, LogitTerm, Step, Trace, Want
from compress.distill.chunked import head_losses


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def make_step(
    *, rows: int = 3, length: int = 5, hidden: int = 4, vocab: int = 11, seed: int = 0, bias=True
) -> Step:
    """A float64 step whose hidden states, head weight and bias are leaves with gradients."""
    labels = torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels[0, 2] = -100
    head = Head(
        weight_VH=random(vocab, hidden, seed=seed + 1).requires_grad_(),
        bias_V=random(vocab, seed=seed + 2).requires_grad_() if bias else None,
    )
    trace = Trace(
        hidden_BLH=random(rows, length, hidden, seed=seed + 3).requires_grad_(), head=head
    )
    batch = {"input_ids": labels.clamp(min=0), "labels": labels}
    return Step(batch=batch, student=trace, teacher=None, want=Want(), number=0)


def make_signal(
    *,
    rows: int = 3,
    length: int = 5,
    hidden: int = 6,
    vocab: int = 11,
    seed: int = 9,
    sequences=None,
) -> DenseSignal:
    head = Head(weight_VH=random(vocab, hidden, seed=seed))
    hidden_SLH = random(rows, length, hidden, seed=seed + 1)
    return DenseSignal(hidden_SLH=hidden_SLH, head=head, sequences_S=sequences)


def leaves(step: Step) -> list[Tensor]:
    head = step.student.head
    bias = [] if head.bias_V is None else [head.bias_V]
    return [step.student.hidden_BLH, head.weight_VH, *bias]


def ours(step: Step, terms: dict[str, LogitTerm], **settings) -> tuple[Tensor, list[Tensor]]:
    total, _ = head_losses(step, terms, **settings)
    return total.detach(), list(torch.autograd.grad(total, leaves(step)))


def student_logits(step: Step) -> Tensor:
    """(N, V), with autograd."""
    return step.student.head(step.student.hidden_BLH.flatten(0, 1)[step.rows_N])


def teacher_logits(step: Step, signal: DenseSignal) -> Tensor:
    return signal.head(signal.hidden_SLH).flatten(0, 1)[step.rows_N]


def assert_same(ours_: tuple[Tensor, list[Tensor]], loss: Tensor, step: Step) -> None:
    """The value and every gradient are those of plain autograd."""
    torch.testing.assert_close(ours_[0], loss.detach())
    for mine, theirs in zip(ours_[1], torch.autograd.grad(loss, leaves(step)), strict=True):
        torch.testing.assert_close(mine, theirs)
