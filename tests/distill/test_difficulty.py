import torch

from compress.distill.difficulty import bins_of, difficulty
from tests.distill.support import make_step, student_logits


def test_difficulty_is_each_sequences_mean_label_loss():
    step = make_step()
    losses_N = torch.nn.functional.cross_entropy(
        student_logits(step), step.labels_N, reduction="none"
    )
    rows_N = step.rows_N // 5
    expected = torch.stack([losses_N[rows_N == row].mean() for row in range(3)])
    torch.testing.assert_close(difficulty(step), expected.float().detach())


def test_entropy_needs_no_labels_value():
    step, other = make_step(), make_step()
    other.batch["labels"][1, 1:] = (other.batch["labels"][1, 1:] + 1) % 11
    measured = [difficulty(each, measure="entropy") for each in (step, other)]
    torch.testing.assert_close(*measured)


def test_a_sequence_without_labels_is_not_hard():
    step = make_step()
    step.batch["labels"][1] = -100
    assert difficulty(step)[1] == 0 and difficulty(step)[0] > 0


def test_bins_are_equally_full_and_the_hardest_is_last():
    hardness = torch.tensor([0.3, 0.1, 0.4, 0.1, 0.5, 0.9, 0.2, 0.6])
    bins = bins_of(hardness, bins=4)
    assert torch.bincount(bins).tolist() == [2, 2, 2, 2]
    assert bins[5] == 3 and bins[1] == bins[3] == 0
    assert bins_of(hardness, bins=1).sum() == 0
