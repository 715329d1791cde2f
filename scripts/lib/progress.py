"""What a run says while it works: a bar on a terminal, a line now and then in a log."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from compress.scripts.lib.report_data import duration

LINES = 10
"""Lines that a whole training leaves in a log."""

SLOW_SECONDS = 3.0
"""A phase that took this long is worth a line."""

TITLES = {
    "data": "data and tokenizer", "teacher": "teacher", "train": "training", "export": "export, "
    "reload and comparison", "compare": "comparison runs", "dense": "dense, for comparison",
    "no_teacher": "labels only, for comparison", "cache": "caching the teacher",
}  # fmt: skip


def quiet_libraries() -> None:
    """Leaves the terminal to this run: no bars of a millisecond, no news about devices."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for chatty in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # a resumed run goes on in its own folder
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # a run that is restored to be measured or exported saves none
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need")
    if not torch.cuda.is_available():  # else DeepSpeed warns that it found none
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


@contextmanager
def announced(phase: str, *, verbose: bool, console: Console | None = None) -> Iterator[None]:
    """Says that a phase begins, and how long it took if that was long.

    Args:
        phase: `data`, `teacher`, `train`, `export`, `compare`, ...
        verbose: False says nothing.
        console: where to; None is standard output.
    """
    title, start = TITLES.get(phase, phase), time.perf_counter()
    if not verbose:
        yield
        return
    console = console or Console(markup=False, highlight=False)
    console.print(f"{title} ...")
    yield
    seconds = time.perf_counter() - start
    if seconds >= SLOW_SECONDS:
        console.print(f"{title}: {duration(seconds)}")


class StepProgress(L.Callback):
    """Shows the optimizer steps of one training, its losses and the time that is left.

    Args:
        phase: `train`, `teacher`, `dense` or `no_teacher`.
        console: where to; None is standard output.
    """

    def __init__(self, phase: str, *, console: Console | None = None) -> None:
        """Nothing is shown before training starts."""
        self.title = TITLES.get(phase, phase)
        self.console = console or Console(markup=False, highlight=False, file=sys.stdout)
        self._bar: Progress | None = None
        self._task: Any = None
        self._start = 0.0
        self._first = self._seen = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens the bar where there is a terminal."""
        self._start, self._first = time.perf_counter(), trainer.global_step
        self._seen = trainer.global_step
        if trainer.is_global_zero and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[losses]}"), console=self.console,
            )  # fmt: skip
            self._task = self._bar.add_task(
                self.title, total=_total(trainer), completed=trainer.global_step, losses=""
            )
            self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Moves on once an optimizer step, whatever the accumulation."""
        step = trainer.global_step
        if step == self._seen or not trainer.is_global_zero:
            return
        before, self._seen = self._seen, step
        if self._bar is not None:
            self._bar.update(self._task, completed=step, losses=_losses(trainer))
        elif self._is_due(before, step, _total(trainer)):
            self.console.print(self._line(trainer), soft_wrap=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Closes the bar, whatever ended the training."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, trainer: L.Trainer) -> str:
        total, taken = _total(trainer), self._seen - self._first
        pace = (time.perf_counter() - self._start) / max(taken, 1)
        left = "" if total is None else f", {duration(pace * (total - self._seen))} left"
        of = "" if total is None else f" of {total}"
        return f"{self.title}: step {self._seen}{of}, {_losses(trainer)}{left}"

    def _is_due(self, before: int, step: int, total: int | None) -> bool:
        every = max(1, (total or 1000) // LINES)
        # a first estimate of the time after a few steps, then evenly
        return step - self._first == min(5, every) or step // every > before // every


def _total(trainer: L.Trainer) -> int | None:
    steps = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
    return None if steps == float("inf") else int(steps)


def _losses(trainer: L.Trainer) -> str:
    """Loss terms and the newest validation loss, in the order they were logged."""
    known = trainer.callback_metrics
    shown = {n.removeprefix("train/"): float(v) for n, v in known.items() if n.startswith("train/")}
    if len(shown) == 2:  # one term and their sum are the same
        shown.pop("loss", None)
    if "val/loss" in known:
        shown["validation"] = float(known["val/loss"])
    return ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
