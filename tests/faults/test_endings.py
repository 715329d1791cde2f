"""Ends that must be clear: a lost loader, a report that cannot be written, a read-only folder."""

import os
import signal
import subprocess

import pytest
from omegaconf import OmegaConf

from compress.callbacks import LogitsDistillation, NumberGuard
from compress.data.loader import ResumableLoader
from compress.errors import BadInput, CompressError
from compress.scripts.lib import run as runs
from compress.scripts.lib.rehearsal import refuse_twins
from compress.scripts.lib.run_folder import RunFolder
from tests.tiny import TinyData


class Greedy(TinyData):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_process_killed_for_memory_is_told():
    with pytest.raises(CompressError, match=r"loads data.*memory.*trainer\.workers"):
        next(iter(ResumableLoader(Greedy(), batch_size=4, num_workers=1)))


@pytest.fixture
def failing_run(tmp_path, monkeypatch):
    config = OmegaConf.create({"run_dir": str(tmp_path / "run"), "ckpt": None, "task": "causal_lm"})

    def start(error):
        def execute(self):
            raise error

        monkeypatch.setattr(runs.Run, "execute", execute)
        monkeypatch.setattr(runs.Run, "save", full_disk)
        monkeypatch.setattr(runs, "write_atomically", full_disk)
        return runs.run(config, [], recipe="qat")

    return start


def full_disk(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("error", [BadInput("the first error"), ValueError("the first error")])
def test_a_report_that_cannot_be_written_does_not_hide_the_first_error(failing_run, error, capsys):
    with pytest.raises(type(error), match="the first error"):
        failing_run(error)
    assert "No space left" in capsys.readouterr().err


def test_a_lost_report_leaves_no_lock(failing_run, tmp_path):
    with pytest.raises(BadInput):
        failing_run(BadInput("no"))
    RunFolder(tmp_path / "run", resuming=True).release()


def test_a_read_only_folder_is_told(small_disk):
    done = subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], capture_output=True)
    if done.returncode:
        pytest.skip("remounting is not allowed here")
    with pytest.raises(BadInput, match=r"cannot be written: Read-only"):
        RunFolder(small_disk / "run", resuming=False)


def test_two_of_a_class_need_names():
    refuse_twins([LogitsDistillation(), LogitsDistillation(name="other"), NumberGuard()])
    with pytest.raises(BadInput, match=r"2 callbacks are LogitsDistillation.*name="):
        refuse_twins([LogitsDistillation(), NumberGuard(), LogitsDistillation()])
    with pytest.raises(BadInput, match=r"called 'a'"):
        refuse_twins([NumberGuard(name="a"), NumberGuard(name="a")])
