"""How many optimizer steps a run will take: what schedules given as fractions are fractions of."""

import math

from lightning import Trainer

from compress.errors import BadInput


def run_length(trainer: Trainer) -> int:
    """Optimizer steps of the whole run, known before it starts.

    Raises:
        BadInput: the run has no end.
    """
    steps = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise BadInput("this run has no last step: give it trainer.max_steps (or max_epochs)")
    return int(steps)
