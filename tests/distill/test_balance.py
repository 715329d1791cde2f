import pytest
import torch

from compress.distill.balance import DetachedRatio


def test_a_loss_weighs_one_until_both_were_seen_and_then_as_much_as_its_reference():
    ratio = DetachedRatio(decay=0.0)
    loss = torch.tensor(4.0, requires_grad=True)
    assert (loss * ratio.factor(loss)).item() == 1.0
    ratio.update(loss=loss, reference=torch.tensor(2.0))
    assert (loss * ratio.factor(loss)).item() == 2.0


def test_no_gradient_flows_through_the_factor():
    ratio = DetachedRatio()
    loss = torch.tensor(4.0, requires_grad=True)
    ratio.update(loss=loss, reference=torch.tensor(2.0))
    assert torch.autograd.grad(loss * ratio.factor(loss), loss)[0].item() == pytest.approx(0.5)


def test_means_follow_slowly_and_are_taken_up_again():
    ratio = DetachedRatio(decay=0.9)
    for reference in (1.0, 2.0):
        ratio.update(loss=torch.tensor(1.0), reference=torch.tensor(reference))
    again = DetachedRatio(decay=0.9)
    again.load_state_dict(ratio.state_dict())
    assert again.factor(torch.tensor(7.0)).item() == pytest.approx(1.1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "reference"])
def test_a_step_that_is_no_number_leaves_no_trace(bad, where):
    ratio = DetachedRatio()
    sound = {"loss": torch.tensor(2.0), "reference": torch.tensor(4.0)}
    ratio.update(**{**sound, where: torch.tensor(bad)})
    assert ratio.state_dict() == {}
    ratio.update(**sound)
    ratio.update(**{**sound, where: torch.tensor(bad)})
    assert ratio.factor(torch.tensor(7.0)).item() == 2.0
