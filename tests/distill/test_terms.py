import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from compress.contract import LogitChunk
from compress.distill.build import LogitSettings, teacher_term
from compress.distill.divergences import reverse_kl
from compress.distill.teacher_rows import TeacherRows
from compress.distill.terms import DenseTerm, LabelLoss
from compress.errors import BadInput
from tests.distill.support import (
    assert_same,
    make_signal,
    make_step,
    ours,
    random,
    student_logits,
    teacher_logits,
)


def kl(log_p, log_q, *, rows=None):
    return kl_div(log_p, log_q, reduction="sum", log_target=True) / (rows or len(log_p))


def term(step, signal, **settings):
    return {
        "logits": teacher_term(step, LogitSettings(teacher_weight=1.0, **settings), signal=signal)
    }


@pytest.mark.parametrize("squared", [True, False])
def test_temperature_factor_is_t_squared_or_one(squared):
    step, signal = make_step(), make_signal()
    terms = term(step, signal, temperature=3.0, scale_by_temperature_squared=squared)
    log_p = log_softmax(student_logits(step) / 3.0, -1)
    expected = kl(log_p, log_softmax(teacher_logits(step, signal) / 3.0, -1))
    assert_same(ours(step, terms), expected * (9.0 if squared else 1.0), step)


def test_temperature_runs_in_a_line_and_stays():
    settings = LogitSettings(temperature=4.0, final_temperature=1.0, temperature_steps=30)
    assert [settings.temperature_at(s) for s in (0, 10, 30, 99)] == [4.0, 3.0, 1.0, 1.0]


@pytest.mark.parametrize(("student", "teacher"), [(11, 14), (14, 11), (14, 14)])
def test_padded_vocabulary_takes_no_mass(student, teacher):
    step, signal = make_step(vocab=student), make_signal(vocab=teacher)
    step.batch["labels"].clamp_(max=10)
    terms = term(step, signal, vocab_size=11)
    log_p = log_softmax(student_logits(step)[:, :11], -1)
    expected = kl(log_p, log_softmax(teacher_logits(step, signal)[:, :11], -1))
    assert_same(ours(step, terms), expected, step)


def test_vocabularies_that_differ_by_more_than_padding_are_refused():
    step, signal = make_step(), make_signal(vocab=5000)
    with pytest.raises(BadInput, match=r"11 rows, the teacher's 5000.*token by token"):
        term(step, signal)


@pytest.mark.parametrize("top_k", [0, 3])
def test_sequences_the_teacher_did_not_see_contribute_nothing(top_k):
    step = make_step()
    signal = make_signal(rows=2, sequences=torch.tensor([2, 0]))
    total, gradients = ours(step, term(step, signal, top_k=top_k), chunk_elements=40)
    assert gradients[0][1].abs().sum() == 0  # sequence 1
    reordered = make_signal(rows=2)
    hidden = torch.zeros(3, 5, 6, dtype=torch.float64)
    hidden[2], hidden[0] = reordered.hidden_SLH[0], reordered.hidden_SLH[1]
    seen = (step.rows_N // 5) != 1
    if top_k:
        return
    log_q = log_softmax(hidden.flatten(0, 1)[step.rows_N] @ signal.head.weight_VH.T, -1)
    log_p = log_softmax(student_logits(step), -1)
    expected = kl(log_p[seen], log_q[seen], rows=len(step.rows_N))
    assert_same((total, gradients), expected, step)


def test_uld_compares_sorted_probabilities_of_any_two_vocabularies():
    step, signal = make_step(vocab=11), make_signal(vocab=1500)
    p = torch.softmax(student_logits(step), -1).sort(-1, descending=True).values
    q = torch.softmax(teacher_logits(step, signal), -1).sort(-1, descending=True).values
    padded = torch.nn.functional.pad(p, (0, 1489))
    expected = (padded - q).abs().sum() / len(step.rows_N)
    assert_same(ours(step, term(step, signal, alignment="uld")), expected, step)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"temperature": 0.0}, "above 0"),
        ({"final_temperature": 2.0}, "go together"),
        ({"tail": "buckets"}, "tail"),
        ({"alignment": "any"}, "alignment"),
        ({"alignment": "uld", "top_k": 3}, "uld"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_impossible_settings_are_refused(settings, word):
    with pytest.raises(BadInput, match=word):
        LogitSettings(**settings)


def test_a_teacher_that_read_other_tokens_is_refused():
    with pytest.raises(BadInput, match="both must read the same tokens"):
        term(make_step(), make_signal(length=7))


def test_a_shifted_teacher_gives_the_same_loss():
    step, signal = make_step(bias=False), make_signal()
    before = ours(step, term(step, signal))[0]
    signal.head.weight_VH.add_(random(6, seed=77))  # the same constant for every token of a row
    torch.testing.assert_close(before, ours(step, term(step, signal))[0])


def test_terms_that_pull_to_a_target_share_one_pass_and_give_what_each_gives_alone():
    step, signal = make_step(), make_signal()
    teacher = TeacherRows(signal, sequences=3, length=5)
    terms = {"labels": LabelLoss(weight=0.3), "logits": DenseTerm(teacher=teacher, weight=0.9)}

    class Alone:
        """The same term, its pull out of sight."""

        def __init__(self, term):
            self.term, self.weight = term, term.weight

        def __call__(self, chunk):
            return self.term(chunk)

    together = ours(step, terms)
    alone = ours(step, {name: Alone(term) for name, term in terms.items()})
    mixed = ours(step, {"labels": terms["labels"], "logits": Alone(terms["logits"])})
    for other in (alone, mixed):
        torch.testing.assert_close(together, other)


def test_only_plain_forward_kl_over_everything_is_a_pull():
    step = make_step()
    rows = TeacherRows(make_signal(), sequences=3, length=5)
    some = TeacherRows(
        make_signal(rows=1, sequences=torch.tensor([1])), sequences=3, length=5
    )  # fmt: skip
    logits = torch.randn(4, 11, dtype=torch.float64)
    chunk = LogitChunk(logits_CV=logits, labels_C=step.labels_N[:4], rows_C=step.rows_N[:4])
    assert DenseTerm(teacher=rows).pulls(chunk)
    others = [
        DenseTerm(teacher=some), DenseTerm(teacher=rows, divergence=reverse_kl),
        DenseTerm(teacher=rows, temperature=2.0), DenseTerm(teacher=rows, scale=4.0),
        DenseTerm(teacher=rows, size=9),
    ]  # fmt: skip
    assert not any(term.pulls(chunk) for term in others)
