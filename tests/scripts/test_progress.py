"""Claims about what a run says while it works."""

import io

import lightning as L
import pytest
import torch
from rich.console import Console

from compress.module import CompressionModule
from compress.scripts.lib import progress
from compress.scripts.lib.progress import StepProgress, announced
from tests.tiny import TinyData, tiny_llama


def fitted(console, *, steps=20, accumulate=1) -> None:
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulate,
        callbacks=[StepProgress("train", console=console)], val_check_interval=10,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(TinyData(), batch_size=4)
    trainer.fit(CompressionModule(student=tiny_llama(layers=1)), loader, loader)


def test_a_log_gets_a_first_estimate_and_ten_lines():
    stream = io.StringIO()
    fitted(Console(file=stream, force_terminal=False, width=80))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10 and "\x1b" not in stream.getvalue()
    assert lines[0].startswith("training: step 2 of 20, labels") and "left" in lines[0]
    assert "step 20 of 20" in lines[-1] and "validation" in lines[-1]


def test_accumulated_steps_count_once():
    stream = io.StringIO()
    fitted(Console(file=stream, force_terminal=False, width=80), steps=4, accumulate=3)
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        f"training: step {i} of 4" for i in (1, 2, 3, 4)
    ]


def test_a_terminal_gets_a_bar_with_the_time_left():
    stream = io.StringIO()
    fitted(Console(file=stream, force_terminal=True, width=120, legacy_windows=False))
    assert "20/20" in stream.getvalue() and "labels" in stream.getvalue()


def test_a_phase_says_that_it_begins_and_how_long_it_took(monkeypatch):
    monkeypatch.setattr(progress, "SLOW_SECONDS", 0.0)
    stream = io.StringIO()
    with announced("export", verbose=True, console=Console(file=stream)):
        assert stream.getvalue() == "export, reload and comparison ...\n"
    assert stream.getvalue().splitlines()[1].startswith("export, reload and comparison: 0.0 s")


def test_quiet_says_nothing(capsys):
    with announced("data", verbose=False):
        pass
    assert capsys.readouterr().out == ""


def test_a_phase_that_fails_is_not_said_to_be_done():
    stream = io.StringIO()
    with pytest.raises(ValueError), announced("data", verbose=True, console=Console(file=stream)):
        raise ValueError
    assert len(stream.getvalue().splitlines()) == 1
