"""The whole of `scripts/train.py` on settings that finish in seconds, and faults to put into it."""

import json
from pathlib import Path

import lightning as L

from compress.scripts.train import main

SMALL = (
    "teacher.layers=2", "teacher.hidden=64", "teacher.max_steps=3", "data.max_bytes=300000",
    "data.sequence_length=64", "data.vocab_size=512", "student.layers=1", "trainer.max_steps=6",
    "trainer.batch_size=4", "trainer.validation_batches=2", "trainer.validate_every=3",
    "trainer.checkpoint_every=2", "logger=none",
)  # fmt: skip


def small_run(run_dir: Path, *words: str) -> tuple[int, dict]:
    """Exit status and report of one small run; a recipe of a whole model is not cut."""
    whole = {"recipe=qat", "recipe=sparse", "recipe=prune_distill_qat"} & {*words}
    small = [word for word in SMALL if not (whole and word.startswith("student.layers"))]
    status = main([*small, f"run_dir={run_dir}", "verbose=false", *words])
    path = run_dir / "report.json"
    return status, json.loads(path.read_text()) if path.exists() else {}


class Fails(L.Callback):
    """Raises after some optimizer steps, as a machine that goes down would."""

    def __init__(self, *, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer, *args, **kwargs) -> None:
        if trainer.global_step >= self.after:
            raise RuntimeError("the machine went down")
