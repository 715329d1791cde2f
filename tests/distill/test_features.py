import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.distill.features import (
    FeatureLoss,
    attention,
    attention_transfer,
    cosine,
    mse,
    relations,
)
from compress.errors import BadInput
from tests.distill.support import random

MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
LOSSES = {"mse": mse, "cosine": cosine, "transfer": attention_transfer, "relations": relations}


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_padding_never_counts_and_equal_features_cost_nothing(name, seed):
    student, teacher = random(2, 3, 4, seed=seed), random(2, 3, 4, seed=seed + 1)
    loss = LOSSES[name](student, teacher, MASK)
    student[1, 2], teacher[1, 2] = 100.0, -50.0
    torch.testing.assert_close(LOSSES[name](student, teacher, MASK), loss)
    assert loss >= 0 and abs(LOSSES[name](teacher, teacher, MASK)) < 1e-9


@pytest.mark.parametrize("loss", [attention_transfer, relations])
def test_losses_that_relate_positions_take_unequal_widths(loss):
    assert loss(random(2, 3, 4), random(2, 3, 6, seed=1), MASK).isfinite()


def test_cosine_is_blind_to_length_and_transfer_to_scale():
    student, teacher = random(2, 3, 4), random(2, 3, 4, seed=1)
    torch.testing.assert_close(cosine(5 * student, teacher, MASK), cosine(student, teacher, MASK))
    transfer = attention_transfer(student, teacher, MASK)
    torch.testing.assert_close(attention_transfer(student, 3 * teacher, MASK), transfer)


def test_attention_maps_with_other_heads_are_compared_by_their_mean():
    maps = random(2, 4, 3, 3).softmax(-1)
    assert attention(maps, maps, MASK) == 0
    assert attention(maps, maps.mean(1, keepdim=True).expand(2, 2, 3, 3), MASK) < 1e-12
    sharp = torch.eye(3, dtype=torch.float64).expand(2, 4, 3, 3)
    even = torch.full((2, 4, 3, 3), 1 / 3, dtype=torch.float64)
    assert attention(even, sharp, MASK).item() == pytest.approx(math.log(3))


def test_relation_heads_must_divide_both_widths():
    with pytest.raises(BadInput, match=r"relation_heads=4 does not divide the widths \(4, 6\)"):
        relations(random(2, 3, 4), random(2, 3, 6), MASK, heads=4)


def test_embeddings_are_compared_one_a_sequence():
    ours, theirs = random(4, 1, 8).float(), random(4, 1, 8, seed=1).float()

    def loss(kind, student, teacher):
        term = FeatureLoss(
            pairs={"embedding": "embedding"},
            kind=kind,
            widths=[(student.shape[-1], teacher.shape[-1])],
        )
        return term({"embedding": student}, {"embedding": teacher}, torch.ones(4, 16))

    torch.testing.assert_close(loss("mse", ours, theirs), (ours - theirs).square().mean())
    narrow = random(4, 1, 6).float()
    assert loss("mse", narrow, theirs).requires_grad  # through a projector
    assert loss("relations", narrow, theirs) > loss("relations", theirs, theirs)
    with pytest.raises(BadInput, match="embedding has none"):
        loss("attention_transfer", ours, theirs)


def test_shapes_that_cannot_be_compared_are_told():
    term = FeatureLoss(pairs={"a": "b"}, kind="mse", widths=[(4, 4)])
    with pytest.raises(BadInput, match=r"student a gives \(2, 3, 5\), teacher b gives \(2, 3, 4\)"):
        term({"a": torch.ones(2, 3, 5)}, {"b": torch.ones(2, 3, 4)}, torch.ones(2, 3))


def test_kinds_that_do_not_exist_and_no_pairs_are_refused():
    with pytest.raises(BadInput, match="Did you mean 'cosine'"):
        FeatureLoss(pairs={"a": "b"}, kind="cosin", widths=[(4, 4)])
    with pytest.raises(BadInput, match="at least one pair"):
        FeatureLoss(pairs={}, kind="mse", widths=[])
