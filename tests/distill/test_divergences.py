import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.distill.divergences import divergence_by_name, logits_gradient
from compress.errors import BadInput
from tests.distill.support import random

NAMES = [
    "forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl", "skewed_reverse_kl",
    "total_variation",
]  # fmt: skip


def plain(name, p, q, *, beta, skew):
    """The definitions, word for word."""

    def kl(a, b):
        return (a * (a / b).log()).sum(-1)

    mixed = beta * q + (1 - beta) * p
    return {
        "forward_kl": lambda: kl(q, p),
        "reverse_kl": lambda: kl(p, q),
        "jensen_shannon": lambda: beta * kl(q, mixed) + (1 - beta) * kl(p, mixed),
        "skewed_kl": lambda: kl(q, skew * q + (1 - skew) * p),
        "skewed_reverse_kl": lambda: kl(p, (1 - skew) * q + skew * p),
        "total_variation": lambda: (p - q).abs().sum(-1) / 2,
    }[name]()


@pytest.mark.parametrize("name", NAMES)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.5, 4.0),
    share=st.floats(0.05, 0.95),
    spread=st.floats(0.1, 8.0),
)
@settings(max_examples=25, deadline=None)
def test_value_and_gradient_are_those_of_autograd(name, seed, temperature, share, spread):
    logits = random(3, 7, seed=seed, scale=spread).requires_grad_()
    log_q = torch.log_softmax(random(3, 7, seed=seed + 1, scale=spread), -1)
    log_p = torch.log_softmax(logits / temperature, -1)
    expected = plain(name, log_p.exp(), log_q.exp(), beta=share, skew=share)
    slope = divergence_by_name(name, beta=share, skew=share)(log_p.detach(), log_q.clone())
    torch.testing.assert_close(slope.value_C, expected.detach(), rtol=1e-6, atol=1e-9)
    gradient = logits_gradient(slope, log_p.detach(), temperature=temperature)
    by_autograd = torch.autograd.grad(expected.sum(), logits)[0]
    torch.testing.assert_close(gradient, by_autograd, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_equal_distributions_have_no_divergence_and_no_gradient(name):
    log_p = torch.log_softmax(random(4, 9, scale=5.0).float(), -1)
    slope = divergence_by_name(name)(log_p, log_p.clone())
    assert slope.value_C.abs().max() < 1e-6
    assert logits_gradient(slope, log_p).abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_underflowing_probabilities_stay_finite(name):
    log_p = torch.log_softmax(torch.tensor([[0.0, 200.0, -300.0]]), -1)
    log_q = torch.log_softmax(torch.tensor([[150.0, 0.0, -300.0]]), -1)
    slope = divergence_by_name(name)(log_p, log_q)
    assert slope.value_C.isfinite().all()
    assert logits_gradient(slope, log_p).isfinite().all()


def test_bounded_divergences_stay_below_their_bounds():
    log_p = torch.log_softmax(torch.tensor([[80.0, 0.0]]), -1)
    log_q = torch.log_softmax(torch.tensor([[0.0, 80.0]]), -1)
    value = {n: divergence_by_name(n)(log_p, log_q.clone()).value_C.item() for n in NAMES}
    assert value["total_variation"] == pytest.approx(1.0)
    assert value["jensen_shannon"] == pytest.approx(0.6931, abs=1e-3)
    assert value["skewed_kl"] == pytest.approx(2.3026, abs=1e-3)  # -log(skew)
    assert value["forward_kl"] == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("settings_", "word"),
    [
        ({"name": "foward_kl"}, "forward_kl"),
        ({"name": "jensen_shannon", "beta": 1.0}, "reverse_kl"),
        ({"name": "skewed_kl", "skew": 1.0}, "skew=1.0"),
    ],
)
def test_impossible_settings_are_refused_with_the_way_out(settings_, word):
    with pytest.raises(BadInput, match=word):
        divergence_by_name(**settings_)
