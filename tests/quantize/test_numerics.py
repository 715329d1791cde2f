"""Gradients for every grid by the LSQ formula; weights that are zero, constant, tiny or broken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.errors import BadInput
from compress.quantize import SCHEMES, fake_quantize, fake_quantize_dynamic, prepare, resolve_scheme
from compress.quantize.fusion import weight_quantizer
from compress.quantize.grid import FP4_MAX, FP8_MAX, Grid, grid_of, merge, split

GRIDS = {
    "int2": Grid(kind="int", q_min=-2.0, q_max=1.0),
    "int8": Grid(kind="int", q_min=-128.0, q_max=127.0),
    "int4 in bf16": Grid(kind="int", q_min=-8.0, q_max=7.0, scale_format="bfloat16"),
    "fp8": Grid(kind="fp8", q_min=-FP8_MAX, q_max=FP8_MAX),
    "fp4": Grid(kind="fp4", q_min=-FP4_MAX, q_max=FP4_MAX),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("passes", [False, True])
@given(seed=st.integers(0, 1 << 30), size=st.floats(1e-4, 1e4))
@settings(max_examples=10, deadline=None)
def test_gradients_are_the_formula_on_every_grid(name, passes, seed, size):
    grid, generator = GRIDS[name], torch.Generator().manual_seed(seed)
    weight = (torch.randn(8, 32, generator=generator) * size).requires_grad_()
    # a third of the values saturates
    scale = (torch.rand(8, 1, generator=generator) + 0.5) * size / grid.q_max
    scale.requires_grad_()
    grad = torch.randn(8, 32, generator=generator)
    fake_quantize(weight, scale, grid=grid, pass_saturated=passes).backward(grad)
    steps = (weight / grid.round_scale(scale)).detach()
    clamped = steps.clamp(grid.q_min, grid.q_max)
    inside = clamped == steps
    slope = grid.round_(clamped.clone()) - clamped * inside
    factor = (32 * grid.q_max) ** -0.5
    assert torch.equal(weight.grad, grad if passes else grad * inside)
    torch.testing.assert_close(scale.grad, (grad * slope).sum(-1, keepdim=True) * factor)


@given(values=st.lists(st.floats(width=32, allow_nan=True), min_size=8, max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_float_gives_a_grid_value_and_a_defined_gradient(values):
    weight = torch.tensor([values], requires_grad=True)
    scale = torch.tensor([[0.25]], requires_grad=True)
    used = fake_quantize(weight, scale, grid=GRIDS["int8"])
    used.sum().backward()
    finite = ~weight.detach().isnan()
    codes = used.detach()[finite] / 0.25
    assert torch.equal(codes, codes.round())
    assert (codes.abs() <= 128).all()
    assert used.detach()[~finite].isnan().all()
    assert set(weight.grad.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("fill", [0.0, -0.0, 0.3, -2.5, 1e-40, 3e-39, 1e-30, 1e30])
def test_constant_weights_come_out_finite_and_near(scheme, fill):
    layer = nn.Linear(128, 128, bias=False)
    nn.init.constant_(layer.weight, fill)
    prepare(nn.ModuleDict({"a": layer}), scheme=scheme)
    used = layer.weight
    assert used.isfinite().all()
    used.sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()
    assert weight_quantizer(layer).log_step.grad.isfinite().all()
    if 1e-30 <= abs(fill) < 1e30 or fill == 0:
        torch.testing.assert_close(used, torch.full_like(used, fill), rtol=0.34, atol=0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_broken_weights_are_refused_by_name(scheme, broken):
    layer = nn.Linear(128, 128, bias=False)
    with torch.no_grad():
        layer.weight[3, 5] = broken
    with pytest.raises(BadInput, match="a: 1 of 16384 weights are NaN or infinite"):
        prepare(nn.ModuleDict({"a": layer}), scheme=scheme)


@pytest.mark.parametrize("scheme", ["W8A8", "FP8_DYNAMIC", "MXFP4"])
@given(seed=st.integers(0, 1 << 30), size=st.floats(1e-20, 1e20))
@settings(max_examples=10, deadline=None)
def test_dynamic_rows_stay_near_and_rows_of_zeros_stay_zero(scheme, seed, size):
    args = resolve_scheme(scheme).input_activations
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) * size
    values[1] = 0.0
    used = merge(args, fake_quantize_dynamic(split(args, values), grid=grid_of(args)))
    assert (used[1] == 0).all()
    largest = values.abs().amax(-1, keepdim=True)
    assert ((used - values).abs() <= 0.26 * largest).all()


def test_bf16_weights_get_bf16_gradients_and_fp32_scales():
    weight = torch.randn(8, 32).bfloat16().requires_grad_()
    scale = torch.full((8, 1), 0.1, requires_grad=True)
    used = fake_quantize(weight, scale, grid=GRIDS["int4 in bf16"])
    used.float().square().sum().backward()
    assert (used.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    assert scale.grad.dtype == torch.float32
    assert scale.grad.isfinite().all()
