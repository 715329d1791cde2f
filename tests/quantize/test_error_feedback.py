"""GPTQ's arithmetic: what it minimises, and when it is rounding to nearest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import BadInput
from compress.quantize.error_feedback import error_feedback
from compress.quantize.fake_quantize import quantized
from compress.quantize.grid import FP4_MAX, Grid

INT3 = Grid(kind="int", q_min=-4.0, q_max=3.0)
FP4 = Grid(kind="fp4", q_min=-FP4_MAX, q_max=FP4_MAX)


def problem(seed, *, rows=12, columns=40, samples=200):
    """A weight and inputs whose columns depend on one another, as a network's do."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(samples, columns, generator=generator) @ mixing
    return weight, inputs, inputs.T @ inputs / samples


def steps(weight, grid):
    return grid.scale_of(weight.abs().amax(-1, keepdim=True)).expand_as(weight)


def output_error(weight, used, inputs):
    return ((weight - used) @ inputs.T).square().sum()


@pytest.mark.parametrize("grid", [INT3, FP4])
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=15, deadline=None)
def test_outputs_are_closer_than_by_rounding_to_nearest(grid, seed):
    weight, inputs, moment = problem(seed)
    step = steps(weight, grid)
    fed = quantized(error_feedback(weight, moment, step, grid), step, grid)
    nearest = quantized(weight, step, grid)
    assert output_error(weight, fed, inputs) < 0.9 * output_error(weight, nearest, inputs)


def test_independent_inputs_leave_nothing_to_make_up_for():
    weight, _, _ = problem(0)
    step = steps(weight, INT3)
    assert torch.equal(error_feedback(weight, torch.eye(40), step, INT3), weight)


def test_wide_layers_spread_errors_beyond_one_part():
    weight, inputs, moment = problem(1, rows=4, columns=300, samples=900)
    step = steps(weight, INT3)
    fed = quantized(error_feedback(weight, moment, step, INT3), step, INT3)
    nearest = quantized(weight, step, INT3)
    assert output_error(weight, fed, inputs) < 0.8 * output_error(weight, nearest, inputs)


def test_masked_weights_stay_zero_and_their_loss_is_spread():
    weight, inputs, moment = problem(2)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    step = steps(weight, INT3)
    fed = error_feedback(weight, moment, step, INT3, mask_OI=mask)
    assert (fed[~mask] == 0).all()
    used, plain = quantized(fed, step, INT3), quantized(weight * mask, step, INT3)
    assert output_error(weight, used, inputs) < output_error(weight, plain, inputs)


def test_columns_that_were_never_fed_are_rounded_to_nearest():
    weight, _, moment = problem(3)
    moment[:, 5] = moment[5] = 0.0
    step = steps(weight, INT3)
    fed = error_feedback(weight, moment, step, INT3)
    assert fed.isfinite().all()
    assert torch.equal(fed[:, 5], weight[:, 5])
    assert torch.equal(error_feedback(weight, torch.zeros(40, 40), step, INT3), weight)


def test_broken_inputs_are_refused():
    weight, _, moment = problem(4)
    moment[3, 3] = float("nan")
    with pytest.raises(BadInput, match="NaN"):
        error_feedback(weight, moment, steps(weight, INT3), INT3)
