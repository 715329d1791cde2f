"""The plan is the best that fits: compared with every plan there is."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import BadInput
from compress.quantize.budget import Unit, bits_of, cheapest_plan

SCHEMES = ("W2A16:32", "W4A16:32", "W8A16:32")


def unit(name, weights, damage):
    bits = {scheme: bits_of(scheme, columns=256) for scheme in SCHEMES}
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
    ("scheme", "bits"), [("W3A16:64", 3.25), ("NVFP4A16", 4.5), ("MXFP4", 4.25), ("W8A8", 8.125)]
)
def test_bits_count_the_scales(scheme, bits):
    assert bits_of(scheme, columns=128) == bits
