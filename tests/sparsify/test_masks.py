"""Masks keep exactly what was asked, in every pattern."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import UnsupportedScheme
from compress.sparsify.masks import Pattern, keep_among, pack_bits, topk_mask, unpack_bits


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), density=st.floats(0.0, 1.0))
def test_density_is_exact_to_the_entry(rows, columns, density):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).round()
    assert int(topk_mask(weight, density=density).sum()) == round(density * weight.numel())


@pytest.mark.parametrize(
    ("pattern", "kept", "group"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)]
)
def test_each_group_keeps_its_n_largest(pattern, kept, group):
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    mask = topk_mask(weight, density=kept / group, pattern=pattern)
    groups, magnitudes = mask.unflatten(1, (-1, group)), weight.abs().unflatten(1, (-1, group))
    assert (groups.sum(-1) == kept).all()
    smallest_kept = magnitudes.masked_fill(~groups, torch.inf).amin(-1)
    assert (smallest_kept >= magnitudes.masked_fill(groups, 0).amax(-1)).all()


def test_ties_within_a_group_go_to_the_lower_index():
    mask = topk_mask(torch.ones(1, 8), density=0.5, pattern="2:4")
    assert mask.tolist() == [[True, True, False, False] * 2]


def test_a_schedule_above_the_pattern_keeps_more_of_each_group():
    mask = topk_mask(torch.randn(4, 16), density=0.75, pattern="2:4")
    assert (mask.unflatten(1, (-1, 4)).sum(-1) == 3).all()


def test_blocks_stand_or_fall_together_by_their_norm():
    weight = torch.ones(4, 8)
    weight[2:, 4:] = 9.0
    mask = topk_mask(weight, density=0.25, pattern="2x4")
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[2:, 4:] = True
    assert mask.equal(expected)


def test_only_allowed_entries_are_kept_even_when_they_are_zero():
    scores, allowed = torch.tensor([5.0, 0.0, 0.0]), torch.tensor([False, False, True])
    assert keep_among([scores], kept=1, among=[allowed])[0].equal(allowed)


@pytest.mark.parametrize("text", ["4:2", "0:4", "2/4", "dense", "0x4"])
def test_words_that_are_no_pattern_are_refused(text):
    with pytest.raises(UnsupportedScheme, match="pattern="):
        Pattern.parse(text)


def test_every_layer_that_does_not_divide_is_named():
    shapes = {"a": (8, 6), "b": (8, 8), "c": (8, 10)}
    with pytest.raises(UnsupportedScheme, match=r"2 of 3 layers:\n  a   8 x 6\n  c   8 x 10"):
        Pattern.parse("2:4").check(shapes)


@settings(max_examples=30, deadline=None)
@given(bits=st.lists(st.booleans(), min_size=1, max_size=33))
def test_packing_is_one_bit_an_entry_and_loses_nothing(bits):
    mask = torch.tensor(bits)
    packed = pack_bits(mask)
    assert packed.numel() == (len(bits) + 7) // 8
    assert unpack_bits(packed, mask.shape).equal(mask)


def test_bytes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="no packed mask"):
        unpack_bits(pack_bits(torch.ones(8, dtype=torch.bool)), (9,))


@pytest.mark.parametrize("density", [-0.1, 1.1])
def test_densities_outside_0_to_1_are_refused(density):
    with pytest.raises(ValueError, match="no share"):
        topk_mask(torch.ones(4, 4), density=density)
