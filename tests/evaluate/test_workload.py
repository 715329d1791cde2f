"""Loads are drawn as asked, and the same each time."""

import json
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import BadInput
from compress.evaluate.workload import draw_lengths, make_jobs, poisson_arrivals, read_lengths


@given(low=st.integers(1, 50), extra=st.integers(0, 50), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_lengths_stay_in_their_range(low, extra, seed):
    found = draw_lengths(20, prompt=(low, low + extra), new=(0, extra), seed=seed)
    assert all(low <= p <= low + extra and 0 <= n <= extra for p, n in found)
    assert found == draw_lengths(20, prompt=(low, low + extra), new=(0, extra), seed=seed)


def test_arrivals_are_poisson():
    arrivals = poisson_arrivals(4000, rate=5.0, seed=1)
    gaps = [b - a for a, b in zip([0.0, *arrivals], arrivals, strict=False)]
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.05)  # as an exponential's
    assert min(gaps) >= 0


def test_jobs_have_the_lengths_and_the_batch():
    jobs = make_jobs([(5, 3), (7, 0)], batch=4, vocab_size=11)
    assert [(len(j.prompts), len(j.prompts[0]), j.new_tokens) for j in jobs] == [
        (4, 5, 3), (4, 7, 0)]  # fmt: skip
    assert max(t for j in jobs for p in j.prompts for t in p) < 11


def test_recorded_lengths_repeat(tmp_path):
    path = tmp_path / "lengths.jsonl"
    path.write_text('{"prompt_tokens": 9, "new_tokens": 2}\n{"prompt_tokens": 4, "new_tokens": 1}')
    assert read_lengths(path, 3) == [(9, 2), (4, 1), (9, 2)]


@pytest.mark.parametrize("text", ["", "{}", "not json", json.dumps({"prompt_tokens": 0})])
def test_wrong_recordings_are_refused(text, tmp_path):
    path = tmp_path / "lengths.jsonl"
    path.write_text(text)
    with pytest.raises(BadInput, match="lengths="):
        read_lengths(path, 3)


def test_impossible_loads_are_refused():
    with pytest.raises(BadInput, match="prompt_tokens=0-3"):
        draw_lengths(3, prompt=(0, 3), new=(1, 1))
    with pytest.raises(BadInput, match="must be positive"):
        poisson_arrivals(3, rate=0.0)
