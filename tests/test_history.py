"""Records of updates stay few, however long a run, and a resumed run keeps the same ones."""

from functools import partial
from itertools import pairwise

import pytest

from compress.callbacks import dynamic_sparsity, structured_pruning
from compress.history import MOST, kept
from tests.callbacks import test_dynamic_sparsity as sparse_runs
from tests.callbacks import test_structured_pruning as pruned_runs


def after(updates, *, most):
    """The steps that are kept after each of so many updates."""
    records = []
    for step in range(updates):
        records = kept(records, {"step": step}, most=most)
        yield [record["step"] for record in records]


@pytest.mark.parametrize("most", [2, 3, 16, MOST])
def test_there_are_never_more_than_asked_for_and_the_ends_stay(most):
    for step, steps in enumerate(after(1000, most=most)):
        assert len(steps) == min(step + 1, most)
        assert (steps[0], steps[-1]) == (0, step)


@pytest.mark.parametrize("updates", [100, 777, 1000, 4096])
def test_what_is_kept_of_a_long_run_spans_it(updates):
    steps = list(after(updates, most=16))[-1]
    assert steps == sorted(set(steps))
    assert max(b - a for a, b in pairwise(steps)) <= 4 * updates / 16


def test_sparsity_keeps_few_records_and_a_resumed_run_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_sparsity, "kept", partial(kept, most=3))
    _, whole, _ = sparse_runs.fit("set", every=1)
    assert [record["step"] for record in whole.state_dict()["history"]] == [0, 2, 5]
    sparse_runs.check_resume(tmp_path, way="set", cut=4, every=1)


def test_pruning_keeps_few_records(monkeypatch):
    monkeypatch.setattr(structured_pruning, "kept", partial(kept, most=3))
    callback = pruned_runs.pruning(every=1)
    pruned_runs.fit([callback])
    steps = [record["step"] for record in callback.state_dict()["history"]]
    assert (len(steps), steps[0], steps[-1]) == (3, 0, 4)
