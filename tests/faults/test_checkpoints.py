"""Checkpoints under faults: whole or not there, and never code."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time

import lightning as L
import pytest
import torch

from compress.callbacks import QuantizationAwareTraining
from compress.data.loader import ResumableLoader
from compress.errors import BadInput
from compress.module import CompressionModule
from compress.scripts.lib.checkpoints import (
    SafeCheckpointIO,
    SaveOnSignal,
    StoppedBySignal,
    load_checkpoint,
)
from tests.tiny import TinyData, tiny_llama

STATE = {"state_dict": {"w": torch.arange(1000.0)}, "global_step": 3}


def test_what_is_saved_is_loaded(tmp_path):
    SafeCheckpointIO().save_checkpoint(STATE, tmp_path / "deep" / "last.ckpt")
    loaded = SafeCheckpointIO().load_checkpoint(tmp_path / "deep" / "last.ckpt")
    assert torch.equal(loaded["state_dict"]["w"], STATE["state_dict"]["w"])
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["last.ckpt"]


def test_a_failed_write_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(STATE, path)

    def full(checkpoint, stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BadInput, match=r"disk is full.*ckpt=last"):
        SafeCheckpointIO().save_checkpoint({**STATE, "global_step": 4}, path)
    monkeypatch.undo()
    assert load_checkpoint(path)["global_step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_is_told_and_keeps_the_one_before(small_disk):
    path = small_disk / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(STATE, path)
    with pytest.raises(BadInput, match=r"disk is full|cannot be written"):
        SafeCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(2_000_000)}}, path)
    assert load_checkpoint(path)["global_step"] == 3
    assert [p.name for p in small_disk.iterdir()] == ["last.ckpt"]


class Code:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**STATE, "callbacks": Code()}, "evil.ckpt")
    with pytest.raises(BadInput, match=r"could run code.*weights_only=False"):
        load_checkpoint(tmp_path / "evil.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Code()))
    with pytest.raises(BadInput):
        load_checkpoint(tmp_path / "plain.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "absent", "other"])
def test_damaged_checkpoints_are_told(tmp_path, damage):
    path = tmp_path / "last.ckpt"
    torch.save(STATE, path)
    whole = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "other":
        torch.save([1, 2], path)
    else:
        path.write_bytes(
            {"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"x" * 99}[damage]
        )
    with pytest.raises(BadInput, match=r"last\.ckpt"):
        load_checkpoint(path)


class SignalAt(L.Callback):
    """Sends this process a signal at one micro-batch."""

    def __init__(self, at, number):
        self.at, self.number, self.seen = at, number, 0

    def on_train_batch_start(self, *args):
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), self.number)


def fit(folder, *also, ckpt=None, accumulate=2, steps=6):
    torch.manual_seed(0)
    module = CompressionModule(student=tiny_llama())
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, accumulate_grad_batches=accumulate, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=True,
        plugins=[SafeCheckpointIO()], default_root_dir=folder,
        callbacks=[*also, QuantizationAwareTraining(), SaveOnSignal(folder / "last.ckpt")],
    )  # fmt: skip
    trainer.fit(module, ResumableLoader(TinyData(), batch_size=4, seed=0), ckpt_path=ckpt)
    return module.student.state_dict()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [3, 4])  # between two micro-batches of a step, and at its end
def test_a_signal_saves_first_and_the_resumed_run_ends_equal(tmp_path, number, at):
    whole = fit(tmp_path / "a")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedBySignal) as stopped:
        fit(tmp_path / "b", SignalAt(at, number))
    assert stopped.value.code == 128 + number
    assert signal.getsignal(signal.SIGTERM) == before
    assert load_checkpoint(tmp_path / "b" / "last.ckpt")["global_step"] == 2
    resumed = fit(tmp_path / "b", ckpt=str(tmp_path / "b" / "last.ckpt"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


WRITER = """
import sys, torch
from compress.scripts.lib.checkpoints import SafeCheckpointIO
print("ready", flush=True)
for step in range(10**6):
    state = {"state_dict": {"w": torch.full((300_000,), float(step))}, "global_step": step}
    SafeCheckpointIO().save_checkpoint(state, sys.argv[1])
"""


def kill_while_writing(path, draw):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(draw.uniform(0.0, 0.3))
    process.kill()
    process.wait()
    if path.exists():  # else it was killed before the first one was whole
        state = load_checkpoint(path)
        assert (state["state_dict"]["w"] == state["global_step"]).all()


def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path):
    kill_while_writing(tmp_path / "last.ckpt", random.Random(0))


@pytest.mark.nightly
def test_fifty_killed_writers_leave_whole_checkpoints(tmp_path):
    draw = random.Random(1)
    for _ in range(50):
        kill_while_writing(tmp_path / "last.ckpt", draw)
