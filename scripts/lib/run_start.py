"""What a run does between its callbacks' starts and its first step, and what it refuses there."""

from typing import Any

import lightning as L

from compress.errors import BadInput
from compress.export.gate import gate
from compress.export.write import DTYPES
from compress.quantize.fusion import quantizers
from compress.sharding import whole_weights


class BeforeTraining(L.Callback):
    """Refuses before the first step what the target cannot serve; measures the PTQ start."""

    def __init__(self, run: Any) -> None:
        """`run` keeps the settings and takes the figures."""
        self.run = run

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Every transform is attached by now: this callback is the last."""
        config = self.run.config
        if config.target is not None:
            verdict = gate(
                pl_module.student, target=config.target, purpose=config.purpose,
                dtype=DTYPES[config.export_dtype],
            )  # fmt: skip
            self.run.report["notes"].extend(verdict.notes)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """The loss of the student as quantised and masked before any step.

        Unknown where quantisation starts later: its scales are not found yet.
        """
        self.run.begin()
        waiting = any(not part.enabled for part in quantizers(pl_module.student))
        if trainer.global_step == 0 and not waiting:
            with whole_weights(pl_module.student):  # of every rank
                if trainer.is_global_zero:
                    self.run.keep_at_start("start_ptq", self.run.loss_of(pl_module.student))


def refuse_teacherless(callbacks: list[L.Callback], teacher: Any) -> None:
    """Refuse callbacks that ask a teacher for something where there is none.

    Raises:
        BadInput: naming each such callback.
    """
    asking = [type(c).__name__ for c in callbacks if getattr(c, "uses_teacher", False)]
    if asking and teacher is None:
        raise BadInput(f"{', '.join(asking)} learn from a teacher, but teacher=none")
