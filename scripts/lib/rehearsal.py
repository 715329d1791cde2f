"""Refusals that need no trained teacher: told before minutes are spent on training one."""

from collections import Counter
from typing import Any

import torch
from omegaconf import DictConfig

from compress.callbacks import CompressionCallback
from compress.errors import BadInput
from compress.export.gate import gate
from compress.export.write import DTYPES
from compress.models import config_of
from compress.scripts.lib.build import build_callbacks
from compress.scripts.lib.embedded import embedded_model
from compress.students import student_from_teacher


def rehearse(config: DictConfig, data: Any) -> None:
    """Attach the recipe's methods to an untrained student of the right shape, and ask the gate.

    Only where the teacher is the embedded one, which may have to be trained first; a given teacher
    is loaded in a moment. Methods that look at data or at the teacher first are asked later.

    Raises:
        CompressError: what the run itself would have raised after the teacher's training.
    """
    callbacks = build_callbacks(config)
    refuse_twins(callbacks)
    if config.teacher.kind != "embedded" or config.student.kind == "hf":
        return
    with torch.random.fork_rng(devices=[]):  # the run draws what it would have drawn without this
        teacher = embedded_model(config, data)
    layers = config.student.layers or config_of(teacher).num_hidden_layers
    student = student_from_teacher(teacher, layers=layers)
    for callback in callbacks:
        ours = isinstance(callback, CompressionCallback)
        if ours and not callback.uses_teacher and not callback.needs_data:
            callback.attach(student)
    if config.target is not None:
        dtype = DTYPES[config.export_dtype]
        gate(student, target=config.target, purpose=config.purpose, dtype=dtype)


def refuse_twins(callbacks: list[Any]) -> None:
    """Refuse callbacks that a checkpoint could not tell apart.

    Raises:
        BadInput: several of one class have one name, or none.
    """
    ours = [c for c in callbacks if isinstance(c, CompressionCallback)]
    counts = Counter((type(c).__qualname__, c.name) for c in ours)
    problems = [
        f"{count} callbacks are {kind} "
        + (f"and called {name!r}" if name else "without a name")
        + ": give each a name= of its own, so that checkpoints and loss terms tell them apart"
        for (kind, name), count in counts.items()
        if count > 1
    ]
    if problems:
        raise BadInput("\n".join(problems))
