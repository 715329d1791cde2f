import pytest
import torch
from torch.nn.functional import log_softmax

from compress.contract import TopKSignal
from compress.distill.build import LogitSettings, teacher_term
from compress.errors import BadInput
from tests.distill.support import make_signal, make_step, ours, student_logits
from tests.distill.test_divergences import NAMES, plain


def stored(step, *, k, sampled=False):
    signal = make_signal()
    log_q = log_softmax(signal.head(signal.hidden_SLH), -1)
    log_probs, tokens = log_q.topk(k, dim=-1)
    return TopKSignal(tokens_BLK=tokens, log_probs_BLK=log_probs, sampled=sampled)


def picked(step, signal):
    rows = step.rows_N
    return signal.tokens_BLK.flatten(0, 1)[rows], signal.log_probs_BLK.flatten(0, 1)[rows]


def with_rest(few):
    return torch.cat([few, 1 - few.sum(-1, keepdim=True)], -1)


def term(step, signal, **settings):
    return {
        "logits": teacher_term(step, LogitSettings(teacher_weight=1.0, **settings), signal=signal)
    }


@pytest.mark.parametrize("name", NAMES)
def test_bucket_compares_k_tokens_and_the_rest(name):
    step = make_step()
    signal = stored(step, k=4)
    tokens, log_q = picked(step, signal)
    p = with_rest(torch.softmax(student_logits(step), -1).gather(1, tokens))
    expected = plain(name, p, with_rest(log_q.exp()), beta=0.5, skew=0.1).mean()
    mine = ours(step, term(step, signal, divergence=name))
    torch.testing.assert_close(mine[0], expected.detach(), rtol=1e-5, atol=1e-6)
    for ours_, theirs in zip(
        mine[1],
        torch.autograd.grad(expected, [step.student.hidden_BLH, *_head(step)]),
        strict=True,
    ):
        torch.testing.assert_close(ours_, theirs, rtol=1e-5, atol=1e-6)


def _head(step):
    return step.student.head.weight_VH, step.student.head.bias_V


def test_renormalized_tokens_take_any_temperature():
    step = make_step()
    signal = stored(step, k=4)
    tokens, log_q = picked(step, signal)
    p = torch.softmax(student_logits(step).gather(1, tokens) / 2.0, -1)
    q = torch.softmax(log_q / 2.0, -1)
    expected = 4.0 * plain("forward_kl", p, q, beta=0.5, skew=0.1).mean()
    mine = ours(step, term(step, signal, tail="renormalize", temperature=2.0))
    torch.testing.assert_close(mine[0], expected.detach(), rtol=1e-5, atol=1e-6)
    theirs = torch.autograd.grad(expected, step.student.hidden_BLH)[0]
    torch.testing.assert_close(mine[1][0], theirs, rtol=1e-5, atol=1e-6)


def test_all_tokens_as_top_k_equal_the_dense_loss():
    step, signal = make_step(), make_signal()
    dense = ours(step, term(step, signal))
    few = ours(step, term(step, signal, top_k=11))
    torch.testing.assert_close(dense[0], few[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense[1][0], few[1][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
def test_a_dense_teachers_top_k_equals_the_stored_one(tail):
    step = make_step()
    live = ours(step, term(step, make_signal(), top_k=4, tail=tail))
    cached = ours(step, term(step, stored(step, k=4), tail=tail))
    torch.testing.assert_close(live[0], cached[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(live[1][1], cached[1][1], rtol=1e-5, atol=1e-6)


def shuffled(signal):
    order = torch.rand(signal.tokens_BLK.shape).argsort(-1)
    return TopKSignal(
        tokens_BLK=signal.tokens_BLK.gather(-1, order),
        log_probs_BLK=signal.log_probs_BLK.gather(-1, order),
    )


@pytest.mark.parametrize("settings", [{}, {"tail": "renormalize", "temperature": 2.0}])
def test_fewer_tokens_than_are_stored_equal_a_dense_teachers(settings):
    step = make_step()
    live = ours(step, term(step, make_signal(), top_k=4, **settings))
    stored_8 = shuffled(stored(step, k=8))
    cached = ours(step, term(step, stored_8, top_k=4, **settings))
    torch.testing.assert_close(live[0], cached[0], rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(cached[1], live[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("name", NAMES)
def test_stored_tokens_beyond_the_vocabulary_take_no_share(name, tail):
    """All 11 are stored, so that nothing is lost against a dense teacher cut to 7."""
    step = make_step()
    told = {"vocab_size": 7, "divergence": name, "tail": tail}
    live = ours(step, term(step, make_signal(), top_k=7, **told))
    cached = ours(step, term(step, shuffled(stored(step, k=11)), **told))
    torch.testing.assert_close(live[0], cached[0], rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(cached[1], live[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_smaller_student_takes_what_a_larger_teacher_stored():
    step, small = make_step(), make_step(vocab=7)
    signal = stored(step, k=5)
    assert (signal.tokens_BLK >= 7).any()
    assert torch.equal(
        ours(small, term(small, signal))[0], ours(small, term(small, signal, vocab_size=7))[0]
    )


@pytest.mark.parametrize("settings", [{}, {"tail": "renormalize"}])
@pytest.mark.parametrize("name", NAMES)
def test_a_position_whose_tokens_all_lie_beyond_stays_finite(name, settings):
    step = make_step()
    signal = TopKSignal(
        tokens_BLK=torch.tensor([9, 10]).expand(3, 5, 2),
        log_probs_BLK=torch.tensor([0.6, 0.3]).log().expand(3, 5, 2),
    )
    value, gradients = ours(step, term(step, signal, vocab_size=7, divergence=name, **settings))
    assert value.isfinite() and all(g.isfinite().all() for g in gradients)


def test_draws_beyond_the_vocabulary_take_no_share():
    """Where frequencies are the probabilities, the loss is the dense one, cut as that is."""
    step = make_step()
    live = ours(step, term(step, make_signal(), vocab_size=7))
    cached = ours(step, term(step, stored(step, k=11, sampled=True), vocab_size=7))
    torch.testing.assert_close(live[0], cached[0], rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(cached[1], live[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_where_every_draw_lies_beyond_nothing_is_taught():
    step = make_step()
    signal = TopKSignal(
        tokens_BLK=torch.tensor([9, 10]).expand(3, 5, 2),
        log_probs_BLK=torch.tensor([0.5, 0.5]).log().expand(3, 5, 2), sampled=True,
    )  # fmt: skip
    value, gradients = ours(step, term(step, signal, vocab_size=7))
    assert value == 0 and not any(g.any() for g in gradients)


def test_sampled_tokens_give_p_minus_frequency():
    step = make_step()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.rand(3, 5, 11, generator=generator).argsort(-1)[..., :3]
    counts = torch.tensor([5.0, 2.0, 0.0]).expand(3, 5, 3)  # the third fills up: -inf
    signal = TopKSignal(tokens_BLK=tokens, log_probs_BLK=(counts / 7).log(), sampled=True)
    chosen, _ = picked(step, signal)
    log_p = log_softmax(student_logits(step), -1).gather(1, chosen)[:, :2]
    f = torch.tensor([5 / 7, 2 / 7], dtype=torch.float64)
    expected = (f * (f.log() - log_p)).sum(-1).mean()
    mine = ours(step, term(step, signal))
    torch.testing.assert_close(mine[0], expected.detach(), rtol=1e-5, atol=1e-6)
    theirs = torch.autograd.grad(expected, step.student.hidden_BLH)[0]
    torch.testing.assert_close(mine[1][0], theirs, rtol=1e-5, atol=1e-6)


def test_sampling_is_unbiased_where_truncation_is_not():
    """Mean gradient over many draws is the dense one; the top 3 alone are far from it."""
    step, dense = make_step(bias=False), make_signal()
    q = torch.softmax(dense.head(dense.hidden_SLH), -1)
    draws = torch.multinomial(q.flatten(0, 1), 20_000, replacement=True).view(3, 5, -1)
    counts = torch.zeros_like(q).scatter_add_(2, draws, torch.ones_like(draws, dtype=q.dtype))
    tokens = torch.arange(11).expand(3, 5, 11)
    signal = TopKSignal(tokens_BLK=tokens, log_probs_BLK=(counts / 20_000).log(), sampled=True)
    exact = ours(step, term(step, dense))[1][0]
    sampled_gap = (ours(step, term(step, signal))[1][0] - exact).abs().max()
    truncated = term(step, dense, top_k=3, tail="renormalize")
    truncated_gap = (ours(step, truncated)[1][0] - exact).abs().max()
    assert sampled_gap < truncated_gap / 5


@pytest.mark.parametrize(
    ("sampled", "settings", "word"),
    [
        (True, {"temperature": 2.0}, "temperature"),
        (True, {"temperature": 1.0, "final_temperature": 2.0, "temperature_steps": 9}, "2.0"),
        (True, {"divergence": "reverse_kl"}, "reverse_kl"),
        (True, {"top_k": 2}, "top_k=2, tail=bucket"),
        (True, {"tail": "renormalize"}, "top_k=0, tail=renormalize"),
        (True, {"vocab_size": 12}, "vocab_size=12 exceeds a head"),
        (False, {"vocab_size": 12}, "vocab_size=12 exceeds a head"),
        (False, {"top_k": 4}, "top_k=4: the teacher gives 3 tokens"),
        (False, {"temperature": 2.0}, "renormalize"),
        (False, {"temperature": 1.0, "final_temperature": 2.0, "temperature_steps": 9}, "2.0"),
        (False, {"alignment": "uld"}, "uld"),
    ],
)
def test_what_stored_tokens_cannot_tell_is_refused(sampled, settings, word):
    step = make_step()
    with pytest.raises(BadInput, match=word):
        term(step, stored(step, k=3, sampled=sampled), **settings)
