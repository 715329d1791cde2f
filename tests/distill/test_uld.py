import torch

from compress.distill.build import LogitSettings, teacher_term
from compress.distill.uld import sorted_distance
from tests.distill.support import assert_same, make_signal, make_step, ours, student_logits
from tests.distill.support import teacher_logits as logits_of


def test_only_how_sure_both_are_is_compared():
    p = torch.tensor([[0.6, 0.3, 0.1]])
    assert sorted_distance(p, p[:, [2, 0, 1]])[0].item() == 0.0
    assert sorted_distance(p, torch.tensor([[0.6, 0.4]]))[0].item() > 0.19


def test_unequal_vocabularies_give_the_gradient_of_autograd():
    step, signal = make_step(vocab=11), make_signal(vocab=17)
    settings = LogitSettings(teacher_weight=1.0, alignment="uld", temperature=2.0)
    term = teacher_term(step, settings, signal=signal)
    p = (student_logits(step) / 2).softmax(-1).sort(-1, descending=True).values
    q = (logits_of(step, signal) / 2).softmax(-1).sort(-1, descending=True).values
    padded = torch.nn.functional.pad(p, (0, 6))
    assert_same(ours(step, {"t": term}), 4 * (padded - q).abs().sum(1).mean(), step)
