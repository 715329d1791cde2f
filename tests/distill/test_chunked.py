import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from compress.contract import Head, Step, Trace, Want
from compress.distill.build import LogitSettings, teacher_term
from compress.distill.chunked import head_losses
from compress.distill.terms import LabelLoss
from tests.distill.support import (
    assert_same,
    leaves,
    make_signal,
    make_step,
    ours,
    student_logits,
    teacher_logits,
)


def both(step, **settings):
    signal = make_signal()
    term = teacher_term(step, LogitSettings(teacher_weight=0.7, **settings), signal=signal)
    return signal, {"labels": LabelLoss(weight=0.3), "logits": term}


def naive(step, signal):
    logits = student_logits(step)
    teacher = log_softmax(teacher_logits(step, signal), -1)
    divergence = kl_div(log_softmax(logits, -1), teacher, reduction="batchmean", log_target=True)
    return 0.3 * cross_entropy(logits, step.labels_N) + 0.7 * divergence


@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_are_those_of_the_naive_loss(bias):
    step = make_step(bias=bias)
    signal, terms = both(step)
    assert_same(ours(step, terms), naive(step, signal), step)


@pytest.mark.parametrize("chunk_elements", [1, 25, 1 << 20])
def test_chunk_size_does_not_change_the_result(chunk_elements):
    step = make_step()
    signal, terms = both(step)
    assert_same(ours(step, terms, chunk_elements=chunk_elements), naive(step, signal), step)


def test_values_are_reported_by_name_with_their_weight():
    step = make_step()
    _signal, terms = both(step)
    total, values = head_losses(step, terms)
    expected = 0.3 * cross_entropy(student_logits(step), step.labels_N)
    torch.testing.assert_close(values["labels"], expected.detach())
    torch.testing.assert_close(sum(values.values()), total.detach())
    assert not values["labels"].requires_grad


def test_a_scaled_loss_scales_every_gradient():
    step = make_step()
    _, terms = both(step)
    once = ours(step, terms)[1]
    thrice = torch.autograd.grad(3.0 * head_losses(step, terms)[0], leaves(step))
    for small, large in zip(once, thrice, strict=True):
        torch.testing.assert_close(3.0 * small, large)


def test_frozen_head_gets_no_gradient_and_the_hidden_states_do():
    step = make_step(bias=False)
    step.student.head.weight_VH.requires_grad_(False)
    head_losses(step, {"labels": LabelLoss()})[0].backward()
    assert step.student.head.weight_VH.grad is None
    assert step.student.hidden_BLH.grad.abs().sum() > 0


def test_tied_embeddings_collect_both_gradients():
    table = torch.nn.Parameter(torch.randn(11, 4, dtype=torch.float64))
    tokens = torch.randint(0, 11, (2, 6))

    def step_of(hidden):
        trace = Trace(hidden_BLH=hidden, head=Head(weight_VH=table))
        batch = {"input_ids": tokens, "labels": tokens}
        return Step(batch=batch, student=trace, teacher=None, want=Want(), number=0)

    head_losses(step_of(table[tokens].tanh()), {"labels": LabelLoss()})[0].backward()
    mine, table.grad = table.grad.clone(), None
    step = step_of(table[tokens].tanh())
    cross_entropy(student_logits(step), step.labels_N).backward()
    torch.testing.assert_close(mine, table.grad)


def test_a_batch_without_labels_gives_zero_and_zero_gradients():
    step = make_step()
    step.batch["labels"].fill_(-100)
    total, gradients = ours(step, {"labels": LabelLoss()})
    assert total == 0 and all(g.abs().sum() == 0 for g in gradients)


def test_terms_of_no_weight_are_never_called():
    def explode(_chunk):
        raise AssertionError("called")

    explode.weight = 0.0
    step = make_step()
    total, values = head_losses(step, {"labels": LabelLoss(), "off": explode})
    assert total > 0 and list(values) == ["labels"]


def test_a_second_backward_is_refused_not_wrong():
    step = make_step()
    total, _ = head_losses(step, {"labels": LabelLoss()})
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward runs once"):
        total.backward()


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32():
    step = make_step(rows=4, length=8, hidden=32, vocab=64, bias=False)
    hidden = step.student.hidden_BLH.detach().float().requires_grad_()
    weight = step.student.head.weight_VH.detach().float().requires_grad_()
    trace = Trace(hidden_BLH=hidden, head=Head(weight_VH=weight))
    low = Step(batch=step.batch, student=trace, teacher=None, want=Want(), number=0)
    exact = cross_entropy(student_logits(low), low.labels_N)
    rounded = cross_entropy(
        student_logits(low).bfloat16().float() * 0
        + (hidden.flatten(0, 1)[low.rows_N].bfloat16() @ weight.bfloat16().T).float(),
        low.labels_N,
    )
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = head_losses(low, {"labels": LabelLoss()})
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, rounded, rtol=1e-6, atol=1e-6)
    assert total != exact
    total.backward()
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32
    by_autograd = torch.autograd.grad(exact, weight)[0]
    torch.testing.assert_close(weight.grad, by_autograd, rtol=0.1, atol=2e-3)
