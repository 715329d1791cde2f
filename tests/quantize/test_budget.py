"""The plan is the best that fits: compared with every plan there is."""

from itertools import cycle, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from compress.errors import BadInput
from compress.export.write import export
from compress.quantize import prepare, start
from compress.quantize.budget import Unit, bits_of, cheapest_plan
from compress.quantize.sensitivity import measure_sensitivity
from tests.tiny import TinyData, tiny_llama

SCHEMES = ("W2A16:32", "W4A16:32", "W8A16:32")


def unit(name, weights, damage):
    bits = {scheme: bits_of(scheme, columns=256, scale_dtype=torch.bfloat16) for scheme in SCHEMES}
    return Unit(
        names=(name,), weights=weights, damage=dict(zip(SCHEMES, damage, strict=True)), bits=bits
    )


@given(
    units=st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.floats(0, 5), min_size=3, max_size=3)),
        min_size=1,
        max_size=5,
    ),
    budget=st.floats(2.5, 9.0),
)
@settings(max_examples=60, deadline=None)
def test_no_plan_within_the_budget_is_better(units, budget):
    made = [unit(f"l{i}", 64 * w, damage) for i, (w, damage) in enumerate(units)]
    plan = cheapest_plan(made, budget_bits=budget)
    total = sum(u.weights for u in made)
    fitting = [
        sum(u.damage[s] for u, s in zip(made, choice, strict=True))
        for choice in product(SCHEMES, repeat=len(made))
        if sum(u.weights * u.bits[s] for u, s in zip(made, choice, strict=True))
        <= budget * total * (1 + 1e-9)
    ]
    assert plan.bits <= budget * (1 + 1e-6)
    assert plan.damage == pytest.approx(min(fitting), abs=1e-9)


def test_a_budget_of_exactly_one_scheme_affords_it_everywhere():
    made = [unit(f"l{i}", 4096 + 512 * i, (1.0, 0.1, 0.01)) for i in range(6)]
    plan = cheapest_plan(made, budget_bits=4.5)
    assert plan.damage <= 6 * 0.1 + 1e-9


def test_what_suffers_most_gets_the_bits():
    made = [unit("tough", 1024, (0.01, 0.0, 0.0)), unit("tender", 1024, (3.0, 0.1, 0.0))]
    plan = cheapest_plan(made, budget_bits=3.5)
    assert plan.overrides == {"tough": "W2A16:32", "tender": "W4A16:32"}


def test_an_impossible_budget_is_refused_with_the_smallest_plan():
    with pytest.raises(BadInput, match=r"budget_bits=2: the smallest plan has 2\.500 bits"):
        cheapest_plan([unit("a", 64, (1, 1, 1))], budget_bits=2.0)


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        ("W3A16:64", 3.5), ("NVFP4A16", 4.5), ("MXFP4", 4.25), ("W8A8", 8.25),
        ("W4A8:32", 9.0), ("FP8_BLOCK", 8 + 32 / 128**2),
    ],
)  # fmt: skip
def test_bits_count_the_scales(scheme, bits):
    assert bits_of(scheme, columns=128) == bits


def file_bits(path, *, weights):
    """Bits a weight of all that the file holds of the decoder's linear layers."""
    held = load_file(path / "model.safetensors")
    parts = [t for key, t in held.items() if "_proj.weight" in key and "shape" not in key]
    return sum(8 * t.numel() * t.element_size() for t in parts) / weights


@pytest.mark.parametrize(
    ("scale_dtype", "export_dtype"),
    [(None, "float32"), (None, "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")],
)
def test_counted_bits_are_those_of_the_file(scale_dtype, export_dtype, tmp_path):
    scales = scale_dtype and getattr(torch, scale_dtype)
    model, schemes = tiny_llama(hidden=64), ("W2A16:32", "W4A8:32", "W8A16:-1", "NVFP4A16")
    units = measure_sensitivity(
        model, TinyData(), schemes=schemes, samples=2, scale_dtype=scales,
        export_dtype=getattr(torch, export_dtype),
    )  # fmt: skip
    chosen = list(zip(units, cycle(schemes)))
    prepare(
        model, overrides={n: scheme for u, scheme in chosen for n in u.names}, scale_dtype=scales
    )
    start(model, TinyData())
    export(model, target="transformers", path=tmp_path / "out", dtype=export_dtype)
    weights = sum(unit.weights for unit in units)
    counted = sum(unit.weights * unit.bits[scheme] for unit, scheme in chosen) / weights
    # NVFP4 has one more number a layer
    assert file_bits(tmp_path / "out", weights=weights) == pytest.approx(counted, abs=0.01)
