"""SIGKILL at any moment: the next start goes on, and ends with the weights of a run left alone."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from compress.errors import BadInput
from compress.scripts.lib.checkpoints import load_checkpoint
from compress.scripts.lib.run_folder import RunFolder, write_atomically, write_json
from tests.faults.tiny_run import STEPS, run


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    return load_file(run(tmp_path_factory.mktemp("alone")) / "model.safetensors")


def kill_once(folder, draw, *, longest):
    """Starts the run, kills it after a random time; whether it was still running."""
    command = [sys.executable, "-m", "tests.faults.tiny_run", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.readline()
    time.sleep(draw.uniform(0.0, longest))
    process.kill()
    return process.wait() == -signal.SIGKILL


def check(folder, left_alone):
    if (folder / "last.ckpt").exists():
        assert load_checkpoint(folder / "last.ckpt")["global_step"] <= STEPS
    found = load_file(run(folder) / "model.safetensors")
    assert found.keys() == left_alone.keys()
    assert all(torch.equal(found[name], left_alone[name]) for name in found)


def test_a_killed_run_ends_with_the_weights_of_one_left_alone(tmp_path, left_alone):
    kill_once(tmp_path, random.Random(2), longest=2.0)
    check(tmp_path, left_alone)


@pytest.mark.nightly
def test_fifty_kills_in_a_row(tmp_path, left_alone):
    draw, killed, number = random.Random(3), 0, 0
    while killed < 50:
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        killed += kill_once(folder, draw, longest=4.0)
        if (folder / "export").exists():
            check(folder, left_alone)
            number += 1
    check(folder, left_alone)


def test_two_runs_do_not_share_a_folder(tmp_path):
    first = RunFolder(tmp_path / "run", resuming=False)
    with pytest.raises(BadInput, match="in use"):
        RunFolder(tmp_path / "run", resuming=True)
    first.release()
    RunFolder(tmp_path / "run", resuming=True).release()


HOLDER = """
import sys, time
from pathlib import Path
from compress.scripts.lib.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]), resuming=False); print("held", flush=True); time.sleep(60)
"""


def test_a_killed_run_leaves_no_lock(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(BadInput, match="in use"):
        RunFolder(tmp_path / "run", resuming=True)
    holder.kill()
    holder.wait()
    RunFolder(tmp_path / "run", resuming=True).release()


def test_a_full_disk_is_refused_before_the_run(small_disk):
    with pytest.raises(BadInput, match="free"):
        RunFolder(small_disk / "run", resuming=False)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run", resuming=False)


def test_a_report_is_the_old_one_or_the_new_one(small_disk):
    path = small_disk / "report.json"
    write_json(path, {"status": "running"})
    with pytest.raises(OSError, match="space"):
        write_atomically(path, "x" * 2_000_000)
    assert json.loads(path.read_text()) == {"status": "running"}


def test_a_clock_that_jumps_back_changes_no_result(tmp_path, left_alone, monkeypatch):
    now, calls = time.time(), iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now - 3600.0 * next(calls))
    found = load_file(run(tmp_path) / "model.safetensors")
    assert all(torch.equal(found[name], left_alone[name]) for name in found)
