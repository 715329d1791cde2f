"""The soak samples when it is due, over CPU seconds of its own, and tells what grows."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import render_results
import soak

STEADY = {"rss_mb": 500.0, "anonymous_mb": 400.0, "children_mb": 30.0, "handles": 12.0,
          "threads": 6.0, "objects": 5e5, "step_cpu_ms": 500.0, "step_over_fixed": 100.0,
          "checkpoint_mb": 2.5, "cache_mb": 3.4, "log_mb": 1.0}  # fmt: skip


class Process:
    """A process under a clock of ours: a step takes 4 seconds, of which CPU 2, fixed work 0.5."""

    def __init__(self):
        self.now = self.cpu = 100.0
        self.trainer = SimpleNamespace(global_step=0, should_stop=False)

    def step(self, watch, *, counts=True):
        self.now += 4
        self.cpu += 2
        self.trainer.global_step += counts
        watch.on_train_batch_end(self.trainer)

    def fixed_work(self):
        self.cpu += 0.5
        return 0.5

    def figures(self):
        self.cpu += 33  # what a sample costs is no step's time
        return {"rss_mb": 1.0}


@pytest.fixture
def process(monkeypatch):
    process = Process()
    clock = SimpleNamespace(monotonic=lambda: process.now, process_time=lambda: process.cpu)
    monkeypatch.setattr(soak, "time", clock)
    monkeypatch.setattr(soak.soak_setup, "fixed_work", process.fixed_work)
    monkeypatch.setattr(soak.soak_setup, "process_figures", process.figures)
    monkeypatch.setattr(soak.soak_setup, "megabytes", lambda places: {"log_mb": len(places)})
    return process


def watching(process, **settings):
    watch = soak.Watch(soak.Settings(**settings), {"log": Path()})
    watch.on_train_start(process.trainer, None)
    return watch


def test_a_sample_is_taken_once_in_a_while_with_what_the_process_holds(process):
    watch = watching(process, sample_seconds=20.0)
    for _ in range(10):
        process.step(watch)
    assert [s["step"] for s in watch.samples] == [5, 10]
    assert [s["hours"] for s in watch.samples] == [20 / 3600, 40 / 3600]
    assert watch.samples[0]["rss_mb"] == 1.0 and watch.samples[0]["log_mb"] == 1


def test_a_steps_time_is_its_cpu_without_fixed_work_and_without_the_sampling(process):
    watch = watching(process, sample_seconds=20.0)
    for _ in range(10):
        process.step(watch)
    assert [s["step_cpu_ms"] for s in watch.samples] == [2000.0, 2000.0]
    assert [s["step_over_fixed"] for s in watch.samples] == [4.0, 4.0]


def test_batches_between_optimizer_steps_wait_for_the_step(process):
    watch = watching(process, sample_seconds=8.0)
    for _ in range(3):
        process.step(watch, counts=False)
    assert watch.samples == []
    process.step(watch)
    assert watch.samples[0]["step_cpu_ms"] == 8000.0


def test_the_training_stops_when_its_time_is_over_and_not_before(process):
    watch = watching(process, minutes=0.2)
    stopped = []
    for _ in range(3):
        process.step(watch)
        stopped.append(process.trainer.should_stop)
    assert stopped == [False, False, True]


def samples(count=40, **per_hour):
    """Two hours; the figures of `per_hour` move by so much an hour, the others not at all."""
    for i in range(count):
        hours = 2 * (i + 1) / count
        moved = {key: STEADY[key] + slope * hours for key, slope in per_hour.items()}
        yield {**STEADY, **moved, "hours": hours, "step": 10.0 * i}


def soaked(folder, taken, **settings):
    """The table after these samples came one by one, and the samples kept beside it."""
    settings = soak.Settings(out=str(folder / "soak.json"), **settings)
    for i in range(len(taken)):
        soak.report(settings, taken[: i + 1])
    lines = (folder / "soak.jsonl").read_text().splitlines()
    return json.loads((folder / "soak.json").read_text()), [json.loads(line) for line in lines]


def test_what_grows_falls_or_stays_is_told_apart(tmp_path):
    table, kept = soaked(tmp_path, list(samples(rss_mb=20.0, step_cpu_ms=-50.0, log_mb=4.0)))
    verdicts = {row[0]: row[-1] for row in table["rows"]}
    assert len(verdicts) == len(soak.FIGURES) and len(kept) == 40
    moved = {"memory (RSS) (MB)": "grows", "CPU time of a step (ms)": "falls"}
    assert verdicts == {name: moved.get(name, "flat") for name in verdicts}
    assert table["notes"][-1].startswith(f"Not flat: {', '.join(moved)}. Logs grew by 6.")


def test_a_row_holds_slope_and_rise(tmp_path):
    table, _ = soaked(tmp_path, list(samples(rss_mb=20.0)))
    row = next(row for row in table["rows"] if row[0] == "memory (RSS) (MB)")
    assert row[1] == "525" and row[2].startswith("+20 [") and row[3] == "+30"


def test_a_rise_of_the_warmup_alone_does_not_count(tmp_path):
    taken = [{**s, "rss_mb": 500.0 - 300 * (s["hours"] < 0.5)} for s in samples()]
    table, _ = soaked(tmp_path, taken)
    assert {(*row[3:],) for row in table["rows"]} == {("+0", "0", "flat")}
    assert table["notes"][-1].startswith("Not flat: none.")
    unwarmed, _ = soaked(tmp_path, taken, warmup=0.0)
    assert float(unwarmed["rows"][0][3]) > 100


def test_there_is_no_table_before_four_samples_after_the_warmup(tmp_path):
    few = [s for s in samples() if s["hours"] < 0.65]
    with pytest.raises(FileNotFoundError, match=r"soak\.json"):
        soaked(tmp_path, few)
    assert len((tmp_path / "soak.jsonl").read_text().splitlines()) == len(few)


def test_the_table_is_one_that_the_results_page_takes(tmp_path):
    soaked(tmp_path, list(samples()), minutes=120.0, seed=3)
    table = render_results.load(tmp_path)["soak"]
    assert "minutes=120 seed=3" in table["command"]
    assert "| memory (RSS) (MB) | 500 |" in render_results.page({"soak": table})


def test_without_out_samples_are_printed_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soak.report(soak.Settings(), list(samples()))
    assert json.loads(capsys.readouterr().out)["rss_mb"] == 500.0
    assert list(tmp_path.iterdir()) == []
