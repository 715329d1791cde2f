"""Quantisers on layers: their scales, their records, their extremes."""

import pytest
import torch
from torch import nn

from compress.errors import BadInput
from compress.quantize import QuantizeInput, QuantizeWeight, freeze_scales, prepare, resolve_scheme
from compress.quantize.fusion import weight_quantizer
from compress.transforms import plain_state_dict


def quantizer(weight, scheme="W4A16", **settings):
    args = resolve_scheme(scheme, group_size=32 if scheme[1] in "234" else None).weights
    return QuantizeWeight(weight, args=args, name="layer.0", **settings)


@pytest.mark.parametrize("init", ["rtn", "mse", "percentile"])
@pytest.mark.parametrize("fill", [0.0, 0.25, -3.0, 1e-40, 1e30])
def test_constant_and_denormal_weights_give_a_positive_scale(init, fill):
    weight = torch.full((4, 64), fill)
    transform = quantizer(weight, init=init) if init == "rtn" else quantizer(weight)
    transform.initialize(weight, init=init)
    scale = transform.scheme().tensors["scale"]
    assert (scale > 0).all()
    assert scale.isfinite().all()
    used = transform(weight)
    assert used.isfinite().all()
    assert fill in (0.0, 1e-40) or torch.allclose(used, weight, rtol=0.15)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_weights_are_named(broken):
    weight = torch.randn(4, 64)
    weight[1, 2] = broken
    with pytest.raises(BadInput, match=r"layer\.0: 1 of 256"):
        quantizer(weight)


def test_mse_never_has_a_larger_error_than_min_max():
    weight = torch.randn(32, 128) ** 3
    errors = {}
    for init in ("rtn", "mse"):
        transform = quantizer(weight, init=init)
        errors[init] = (transform(weight) - weight).square().sum()
    assert errors["mse"] < 0.9 * errors["rtn"]


def test_percentile_clips_the_outliers():
    weight = torch.randn(8, 128)
    weight[:, 0] = 40.0
    transform = quantizer(weight, "W8A8")
    before = transform.scheme().tensors["scale"].clone()
    transform.initialize(weight, init="percentile", percentile=0.99)
    assert (transform.scheme().tensors["scale"] < 0.2 * before).all()


@pytest.mark.parametrize("mode", ["learned", "tracked", "fixed"])
def test_scale_modes_differ_in_what_moves_the_scale(mode):
    layer = nn.Linear(64, 8)
    prepare(nn.ModuleDict({"a": layer}), scheme="W8A8", scales=mode)
    transform = weight_quantizer(layer)
    first = transform.scheme().tensors["scale"].clone()
    layer(torch.randn(2, 64)).square().sum().backward()
    learns = [p for p in transform.parameters() if p.grad is not None]
    assert bool(learns) == (mode == "learned")
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(2.0)
    layer(torch.randn(2, 64))
    doubled = torch.allclose(transform.scheme().tensors["scale"], 2 * first)
    assert doubled == (mode == "tracked")


def test_frozen_scales_stay_whatever_the_optimizer_does():
    layer = nn.Linear(64, 8)
    prepare(nn.ModuleDict({"a": layer}), scheme="W8A8")
    transform = weight_quantizer(layer)
    with torch.no_grad():
        transform.log_step.fill_(0.3)
    before = transform.scheme().tensors["scale"].clone()
    freeze_scales(layer)
    with torch.no_grad():
        transform.log_step.add_(1.0)
    assert torch.equal(transform.scheme().tensors["scale"], before)


def test_scales_stay_fp32_when_the_model_is_cast():
    layer = nn.Linear(64, 8)
    prepare(nn.ModuleDict({"a": layer}), scheme="W8A8")
    before = weight_quantizer(layer).base_scale.clone()
    layer.to(torch.bfloat16)
    assert torch.equal(weight_quantizer(layer).base_scale, before)
    assert layer(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_int4_scales_are_rounded_to_the_dtype_that_is_loaded():
    weight = torch.randn(8, 64).bfloat16()
    transform = quantizer(weight)
    scale = transform.scheme().tensors["scale"]
    assert scale.dtype == torch.bfloat16
    codes = transform(weight).float().view(8, 2, 32) / scale.float()[..., None]
    # the products are rounded to bf16 once more: half a unit in the last of 8 places
    torch.testing.assert_close(codes, codes.round(), rtol=2.0**-8, atol=0)


@pytest.mark.parametrize(
    ("scheme", "shape"),
    [
        ("W8A8", (128, 1)),
        ("W4A16", (128, 8)),
        ("FP8", (1,)),
        ("FP8_BLOCK", (1, 2)),
        ("NVFP4", (128, 16)),
    ],
)
def test_records_carry_scales_in_the_layout_of_the_file(scheme, shape):
    record = quantizer(torch.randn(128, 256), scheme).scheme()
    assert record.tensors["scale"].shape == shape
    assert ("global_scale" in record.tensors) == (scheme == "NVFP4")


def test_static_input_scale_is_found_by_observation():
    args = resolve_scheme("W8A8", activations="static").input_activations
    transform = QuantizeInput(args=args, name="layer.0")
    values = torch.tensor([[-2.0, 0.5, 1.0]])
    assert torch.equal(transform(values), values)
    assert "scale" not in transform.scheme().tensors
    transform.observe()
    transform(values)
    transform.calibrated()
    assert transform.scheme().tensors["scale"].item() == pytest.approx(2.0 / 127.5)
    assert transform(10 * values).min().item() == pytest.approx(-128 * 2.0 / 127.5)
    fresh = QuantizeInput(args=args)
    fresh.load_state_dict(transform.state_dict())
    assert torch.equal(fresh(values), transform(values))


def test_calibration_without_data_is_refused():
    transform = QuantizeInput(args=resolve_scheme("FP8").input_activations, name="layer.0")
    transform.observe()
    with pytest.raises(BadInput, match=r"layer\.0"):
        transform.calibrated()


def test_plain_state_dict_has_the_names_of_the_dense_model():
    model = nn.ModuleDict({"a": nn.Linear(64, 8)})
    names = set(model.state_dict())
    prepare(model, scheme="W8A8", activations="static")
    assert set(plain_state_dict(model)) == names
