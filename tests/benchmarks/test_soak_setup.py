"""What the soak reads of its process follows what that does; its training's words compose."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from compress import callbacks as ours
from compress.scripts.lib.config import compose

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import soak_setup


def test_the_words_compose_and_end_by_time_alone():
    config = compose([
        *soak_setup.WORDS, "trainer.checkpoint_every=25", f"trainer.max_steps={soak_setup.STEPS}",
    ])  # fmt: skip
    assert config.target is None
    assert config.trainer.max_steps == soak_setup.STEPS
    assert config.student.layers < config.teacher.layers


def test_every_callback_of_the_project_is_on():
    on = {type(callback).__name__ for callback in soak_setup.callbacks(object())}
    assert on == set(ours.__all__) - {"CompressionCallback"}


def test_schedules_last_for_the_whole_run_but_prunings():
    sparsity = next(c for c in soak_setup.callbacks(object()) if type(c) is ours.DynamicSparsity)
    assert sparsity.settings.stop == soak_setup.STEPS


def test_the_fixed_work_is_counted_in_cpu_seconds(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    assert soak_setup.fixed_work() == 2.5


def test_the_fixed_work_leaves_the_trainings_random_numbers_alone():
    before = torch.get_rng_state()
    assert soak_setup.fixed_work() > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_held_memory_files_threads_and_objects_are_seen(tmp_path):
    before = soak_setup.process_figures()
    end = threading.Event()
    held = [bytearray(b"x") * 200_000_000, [[] for _ in range(50_000)]]
    files = [(tmp_path / str(i)).open("w") for i in range(7)]
    threads = [threading.Thread(target=end.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    after = soak_setup.process_figures()
    end.set()
    for thread in threads:
        thread.join()
    for file in files:
        file.close()
    grown = {name: after[name] - before[name] for name in before}
    assert len(held) == 2
    assert grown["anonymous_mb"] > 100 and grown["rss_mb"] > 100
    assert grown["handles"] == 7 and grown["threads"] == 3
    assert grown["objects"] > 49_000  # tests before this one leave a few hundred that go meanwhile


def test_memory_of_children_is_counted_apart_while_they_live():
    before = soak_setup.process_figures()["children_mb"]
    child = subprocess.Popen(
        [sys.executable, "-c", "x = b'x' * 200_000_000; print(len(x), flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "200000000\n"
    during = soak_setup.process_figures()["children_mb"]
    child.communicate("\n")
    assert during - before > 100
    assert soak_setup.process_figures()["children_mb"] < during - 100
    assert soak_setup._status(child.pid) == {}


def test_bytes_are_counted_by_folder_and_logs_without_the_checkpoints(tmp_path):
    places = {"log": tmp_path / "run", "checkpoint": tmp_path / "run" / "checkpoints"}
    places["cache"] = tmp_path / "cache"
    for place, size in (("run", 1_000), ("run/checkpoints/deep", 2_000_000), ("cache", 500_000)):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "file").write_bytes(b"x" * size)
    sizes = soak_setup.megabytes(places)
    assert sizes["checkpoint_mb"] == 2.0 and sizes["cache_mb"] == 0.5
    assert sizes["log_mb"] == pytest.approx(0.001)
