"""Latencies, throughput and cost follow from the moments alone."""

import pytest

from compress.errors import BadInput
from compress.evaluate.latency import Record, dollars_per_million, summarise
from compress.evaluate.paired import ratios, serve_closed, summaries
from compress.evaluate.workload import Job


def record(arrival, *moments, sequences=1, written=None):
    count = len(moments) if written is None else written
    return Record(
        arrival=arrival, moments=moments, sequences=sequences, prompt_tokens=8, written=count
    )


def test_figures_follow_from_the_moments():
    found = summarise([record(0.0, 0.2, 0.3, 0.4), record(1.0, 1.1, 1.2, 1.3)], price_per_hour=3.6)
    assert found["first_token_ms"]["mean"] == pytest.approx(150)
    assert found["per_token_ms"]["mean"] == pytest.approx(100)
    assert found["latency_ms"]["p50"] == pytest.approx(350)
    assert found["tokens_per_second"] == pytest.approx(6 / 1.3)
    assert found["requests_per_second"] == pytest.approx(2 / 1.3)
    assert found["dollars_per_million_tokens"] == pytest.approx(0.001 / (6 / 1.3) * 1e6)


def test_waiting_counts_in_an_open_loop():
    late = record(0.5, 3.0)  # it came at 0.5, and was served at 3
    assert late.latency == late.first == 2.5


def test_a_pass_without_written_tokens_counts_those_read():
    found = summarise([record(0.0, 1.0, sequences=4, written=0)])
    assert found["tokens_per_second"] == 32
    assert found["requests_per_second"] == 4


def test_without_a_price_there_is_no_cost():
    assert dollars_per_million(10.0, None) is None
    with pytest.raises(BadInput, match="price_per_hour"):
        dollars_per_million(10.0, -1.0)


def test_twice_as_fast_is_half_the_latency_and_twice_the_throughput():
    slow = [record(0.0, 1.0, 2.0), record(2.0, 4.0, 6.0), record(6.0, 7.0, 8.0)]
    fast = [
        Record(arrival=r.arrival / 2, moments=tuple(m / 2 for m in r.moments), sequences=1,
               prompt_tokens=8, written=2)
        for r in slow
    ]  # fmt: skip
    found = ratios(fast, slow)
    for name, value in (("latency", 0.5), ("first_token", 0.5), ("throughput", 2.0)):
        assert found[name]["value"] == pytest.approx(value)
        assert found[name]["low"] == pytest.approx(found[name]["high"])  # paired: no spread


class Clockwork:
    """An arm whose jobs take a set time; it notes in which order it was asked."""

    def __init__(self, name, seconds, asked):
        self.name, self.seconds, self.asked = name, seconds, asked

    def serve(self, jobs, arrivals=None):
        self.asked.append((self.name, len(jobs)))
        return [record(i * self.seconds, (i + 1) * self.seconds) for i in range(len(jobs))]


def test_arms_take_turns_and_every_job_counts_once():
    asked = []
    arms = {name: Clockwork(name, s, asked) for name, s in (("model", 1.0), ("baseline", 4.0))}
    jobs = [Job(prompts=((1, 2),), new_tokens=1)] * 8
    found = serve_closed(arms, jobs, rounds=4, warm_up=1)
    assert [name for name, _ in asked[2:]] == ["model", "baseline", "baseline", "model"] * 2
    assert [len(records) for records in found.values()] == [8, 8]
    figures = summaries(found)
    assert figures["ratios"]["latency"]["value"] == pytest.approx(0.25)
    assert figures["baseline"]["requests_per_second"] == pytest.approx(0.25)


def test_nothing_served_is_said():
    with pytest.raises(BadInput, match="no request"):
        summarise([])
