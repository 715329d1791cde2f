"""Sensitivity: what hurts more is measured as more; the plan from it trains and exports."""

import copy

import pytest
import torch

from compress.errors import BadInput
from compress.export.write import export
from compress.quantize import prepare, start
from compress.quantize.budget import cheapest_plan
from compress.quantize.sensitivity import measure_sensitivity, units_of
from tests.tiny import TinyData, tiny_batch, tiny_llama


def test_fewer_bits_hurt_more_and_the_model_is_left_alone():
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    units = measure_sensitivity(model, TinyData(), schemes=("W2A16:32", "W8A16:32"), samples=4)
    assert len(units) == 8  # q/k/v, o, gate/up, down: of two layers
    assert all(u.damage["W2A16:32"] > u.damage["W8A16:32"] >= 0 for u in units)
    assert sum(u.weights for u in units) == sum(
        m.weight.numel() for n, m in model.named_modules() if "layers" in n and hasattr(m, "weight")
        and m.weight.dim() == 2
    )  # fmt: skip
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_layer_with_outliers_is_found():
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 0] *= 30
        model.model.layers[1].mlp.down_proj.weight *= 10
    units = measure_sensitivity(model, TinyData(), schemes=("W3A16:32",), samples=4)
    worst = max(units, key=lambda u: u.damage["W3A16:32"])
    assert worst.names == ("model.layers.1.mlp.down_proj",)


def test_fused_layers_are_one_unit():
    names = ["a.q_proj", "a.k_proj", "a.v_proj", "a.o_proj", "b.gate_proj", "b.up_proj"]
    assert units_of(tiny_llama(), names) == [
        ("a.q_proj", "a.k_proj", "a.v_proj"), ("a.o_proj",), ("b.gate_proj", "b.up_proj"),
    ]  # fmt: skip


def test_a_planned_mixture_exports_as_it_computes(tmp_path):
    model = tiny_llama()
    units = measure_sensitivity(model, TinyData(), samples=4)
    plan = cheapest_plan(units, budget_bits=4.5)
    assert plan.bits <= 4.5
    prepare(model, overrides=plan.overrides)
    start(model, TinyData(), init="mse")
    result = export(model, target="transformers", path=tmp_path / "out", example_batch=tiny_batch())
    assert result.verification.quantized_layers == 14


def test_no_rows_are_refused():
    with pytest.raises(BadInput, match="no row"):
        measure_sensitivity(tiny_llama(), TinyData(), samples=0)
