"""Sizes, plans and schedules: exact, even across layers, and refused early where impossible."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import BadInput, UnsupportedModel, UnsupportedScheme
from compress.prune.importance import Importance
from compress.prune.plan import PruneSizes, largest, make_plan, widths_of
from compress.prune.schedule import PruneSchedule
from compress.prune.structure import structure_of
from tests.tiny import tiny_llama


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 600),
    density=st.floats(0.01, 1.0),
    round_to=st.sampled_from([1, 8, 32, 64, 128]),
)
def test_kept_channels_are_multiples_or_all(size, density, round_to):
    kept = PruneSizes(round_to=round_to).kept_channels(size, density)
    assert 1 <= kept <= size
    assert kept % round_to == 0 or kept == size


@settings(max_examples=30, deadline=None)
@given(blocks=st.integers(1, 8), block=st.sampled_from([1, 4, 16]), data=st.data())
def test_kept_channels_come_in_whole_runs(blocks, block, data):
    kept = data.draw(st.integers(0, blocks)) * block
    scores = torch.rand(blocks * block, generator=torch.Generator().manual_seed(0))
    chosen = largest(scores, kept, block=block)
    assert len(chosen) == kept and list(chosen) == sorted(chosen)
    assert {i // block * block + o for i in chosen for o in range(block)} == set(chosen)


def test_heads_are_kept_evenly_within_their_groups():
    structure = structure_of(tiny_llama(num_attention_heads=8, num_key_value_heads=2))
    scores = Importance.zeros(structure)
    scores.heads[:] = torch.tensor([9.0, 8, 7, 6, 1, 2, 3, 4])  # the first group is better
    plan = make_plan(structure, scores, PruneSizes(heads_density=0.5))
    assert plan.heads[0] == (0, 1, 6, 7)
    assert plan.kv_heads[0] == (0, 1)
    plan = make_plan(structure, scores, PruneSizes(kv_density=0.5))
    assert plan.heads[0] == (0, 1, 2, 3) and plan.kv_heads[0] == (0,)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"heads_density": 0.5}, "each KV group has one query head"),
        ({"layers": 3}, "layers=3 of a model with 2"),
        ({"ffn_density": 0.5, "round_to": 128}, "ffn width 64"),
        ({"kv_density": 0.75}, "3 heads do not divide the hidden width 32"),
    ],
)
def test_what_a_model_cannot_give_is_refused(sizes, reason):
    structure = structure_of(tiny_llama(num_attention_heads=4, num_key_value_heads=4))
    with pytest.raises(UnsupportedScheme, match=reason):
        PruneSizes(**sizes).check(structure)


@pytest.mark.parametrize("sizes", [{"ffn_density": 0.0}, {"ffn_density": 1.5}, {"block": 3}])
def test_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(BadInput):
        PruneSizes(**sizes)


def test_models_of_other_families_are_refused():
    with pytest.raises(UnsupportedModel, match="two families"):
        structure_of(torch.nn.Linear(2, 2))


def test_the_schedule_falls_fast_first_and_ends_exactly():
    schedule = PruneSchedule(start=0.0, stop=0.5, every=0.1).over(100)
    sizes = PruneSizes(ffn_density=0.5, layers=2)
    steps = [step for step in range(101) if schedule.updates_at(step)]
    assert steps == [0, 10, 20, 30, 40, 50]
    path = [schedule.sizes_at(sizes, step=s, layers=6) for s in steps]
    densities = [s.ffn_density for s in path]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] - densities[1] > densities[-2] - densities[-1]
    assert path[0].layers == 6 and path[-1] == sizes


def test_equal_start_and_stop_prune_once():
    schedule = PruneSchedule(start=0, stop=0, every=1)
    assert [s for s in range(9) if schedule.updates_at(s)] == [0]
    assert schedule.sizes_at(PruneSizes(ffn_density=0.5), step=0, layers=2).ffn_density == 0.5


def test_a_schedule_that_outlasts_the_run_is_refused():
    with pytest.raises(BadInput, match="before the model has its final widths"):
        PruneSchedule(stop=50).over(40)
    with pytest.raises(BadInput, match="comes after"):
        PruneSchedule(start=9, stop=5)


def test_widths_are_told_in_numbers():
    structure = structure_of(tiny_llama())
    plan = make_plan(structure, Importance.zeros(structure), PruneSizes(ffn_density=0.5))
    assert widths_of(plan) == {"layers": 2, "ffn": 32, "heads": 4, "kv_heads": 2, "hidden": 32}
