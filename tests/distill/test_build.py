import pytest
import torch

from compress.contract import TopKSignal
from compress.distill.build import LogitSettings, teacher_term
from compress.distill.terms import LabelLoss, LabelsOfSome
from compress.errors import BadInput
from tests.distill.support import make_signal, make_step, ours


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"temperature": 0.0}, "above 0"),
        ({"final_temperature": 2.0}, "go together"),
        ({"tail": "rest"}, "tail='rest'"),
        ({"alignment": "tokens"}, "alignment='tokens'"),
        ({"top_k": -1}, "0 \\(off\\) or above"),
        ({"alignment": "uld", "top_k": 4}, "distance of its own"),
        ({"divergence": "forward_lk"}, "Did you mean 'forward_kl'"),
        ({"divergence": "jensen_shannon", "beta": 0.0}, "outside"),
    ],
)
def test_settings_that_no_step_could_use_are_refused(settings, word):
    with pytest.raises(BadInput, match=word):
        LogitSettings(**settings)


def test_the_temperature_runs_along_its_line():
    settings = LogitSettings(temperature=4.0, final_temperature=1.0, temperature_steps=6)
    assert [settings.temperature_at(step) for step in (0, 3, 6, 9)] == [4.0, 2.5, 1.0, 1.0]


def test_temperature_squared_is_told_apart():
    step, signal = make_step(), make_signal()
    values = [
        ours(
            step,
            {"t": teacher_term(step, LogitSettings(
                teacher_weight=1.0, temperature=3.0, scale_by_temperature_squared=square,
            ), signal=signal)},
        )[0]
        for square in (True, False)
    ]  # fmt: skip
    torch.testing.assert_close(values[0], 9 * values[1])


def test_another_temperature_than_the_stored_one_is_refused():
    step = make_step()
    tokens = torch.zeros(3, 5, 2, dtype=torch.long)
    tokens[..., 1] = 1
    signal = TopKSignal(tokens_BLK=tokens, log_probs_BLK=torch.full((3, 5, 2), -1.0))
    with pytest.raises(BadInput, match="temperature=2"):
        teacher_term(step, LogitSettings(temperature=2.0), signal=signal)
    sampled = TopKSignal(tokens_BLK=tokens, log_probs_BLK=signal.log_probs_BLK, sampled=True)
    with pytest.raises(BadInput, match="forward KL at temperature 1"):
        teacher_term(step, LogitSettings(divergence="reverse_kl"), signal=sampled)
    with pytest.raises(BadInput, match="whole distribution"):
        teacher_term(step, LogitSettings(alignment="uld"), signal=signal)


def test_labels_of_some_and_of_the_others_are_the_labels_of_all():
    step = make_step()
    some = torch.tensor([True, False, True])
    parts = {
        "some": LabelsOfSome(sequences_B=some, length=5),
        "others": LabelsOfSome(sequences_B=~some, length=5),
    }
    whole, halves = ours(step, {"labels": LabelLoss()}), ours(step, parts)
    torch.testing.assert_close(whole[0], halves[0])
    for mine, theirs in zip(halves[1], whole[1], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_frozen_head_gets_no_gradient_and_the_rest_the_same():
    from compress.distill.chunked import head_losses

    step, frozen = make_step(bias=False), make_step(bias=False)
    frozen.student.head.weight_VH.requires_grad_(False)
    for each in (step, frozen):
        head_losses(each, {"labels": LabelLoss()})[0].backward()
    assert frozen.student.head.weight_VH.grad is None
    torch.testing.assert_close(step.student.hidden_BLH.grad, frozen.student.hidden_BLH.grad)
