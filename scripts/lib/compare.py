"""`compare=true`: what each part of a run is worth, at equal seed, data and steps."""

import math
from pathlib import Path
from typing import Any

import lightning as L

from compress.callbacks.base import CompressionCallback
from compress.scripts.lib import build, trainer


def compare_arms(run: Any) -> dict[str, float]:
    """Losses (nats a token) of the dense, post-training-quantised and label-only students."""
    dense = _train(run, lambda callback: not compresses(callback), label="dense")
    losses = {"dense": run.loss_of(dense)}
    run.dense_texts = run.texts_of(dense)  # before it is quantised in place
    losses["ptq"] = _quantised_without_training(run, dense)
    losses["no_teacher"] = run.loss_of(
        _train(run, lambda callback: not learns_from_teacher(callback), label="no_teacher")
    )
    return losses


def summarise(arms: dict[str, float], *, compressed: float) -> dict[str, float | None]:
    """Adds `kept` (share of quality) and `recovered` (share of the PTQ loss won back).

    >>> summarise({"dense": 3.0, "ptq": 3.2, "no_teacher": 3.1}, compressed=3.05)["recovered"]
    0.75
    """
    gap = arms["ptq"] - arms["dense"]
    recovered = (arms["ptq"] - compressed) / gap if gap > 1e-6 else None
    return {
        **arms,
        "kept": math.exp(arms["dense"] - compressed),
        "recovered": None if recovered is None else round(recovered, 6),
    }


def learns_from_teacher(callback: L.Callback) -> bool:
    """Whether it asks a teacher for something; a plain Lightning callback never does."""
    return bool(getattr(callback, "uses_teacher", False))


def compresses(callback: L.Callback) -> bool:
    """Whether it changes the student; plain Lightning callbacks are part of every training."""
    return isinstance(callback, CompressionCallback) and not callback.uses_teacher


def _train(run: Any, wanted: Any, *, label: str) -> Any:
    """One more training with some of the callbacks; no checkpoints."""
    config = run.config
    L.seed_everything(config.seed, verbose=False)
    callbacks = [c for c in build.build_callbacks(config) if wanted(c)]
    training = config.training.copy()
    if label == "no_teacher":
        training.label_weight = 1.0
    module = trainer.train(
        student=run.new_student(), teacher=run.teacher, data=run.data,
        trainer=config.trainer, training=training, callbacks=callbacks,
        loggers=[trainer.JsonlLogger(Path(run.path) / "metrics.jsonl", label)], seed=config.seed,
        task=config.task, verbose=config.verbose,
    )  # fmt: skip
    return module.student


def _quantised_without_training(run: Any, dense: Any) -> float:
    for callback in build.build_callbacks(run.config):
        if compresses(callback):
            if callback.needs_data:
                callback.decide(dense, run.data.train)
            callback.attach(dense)
            callback.compress_at_once(dense, run.data.train)
    return float(run.loss_of(dense))
