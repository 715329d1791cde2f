"""From configuration to data, teacher, student and callbacks."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from compress.checkpoint_student import student_from_checkpoint
from compress.classes import (
    are_numbers,
    are_placeholders,
    check_numbers,
    class_names,
    shared_names,
)
from compress.errors import BadInput, UnsupportedModel
from compress.evaluate.models import classes_of, config_at
from compress.models import config_of
from compress.scripts.lib.embedded import embedded_model
from compress.scripts.lib.signatures import signature_problems
from compress.scripts.lib.targets import import_callback, import_data
from compress.scripts.lib.vocabularies import (
    check_tokenizers,
    named_checkpoints,
    tokenizer_at,
)
from compress.students import student_from_teacher
from compress.teachers.checkpoints import checkpoint_folder
from compress.teachers.local import load_hf_teacher

NOT_OF_THE_WEIGHTS = ("host", "dtype", "cache", "deepspeed", "served")
"""Settings of the embedded teacher that say how it is used, not what it is."""


def cache_folder() -> Path:
    """Where trained teachers and tokenised data are kept: COMPRESS_CACHE or ~/.cache/compress."""
    return Path(os.environ.get("COMPRESS_CACHE", "~/.cache/compress")).expanduser()


def build_tokenizer(config: DictConfig) -> Any | None:
    """The tokenizer of the given models; None where the data trains its own.

    Raises:
        BadInput: there is none, or the models of the run have different ones.
    """
    path = config.teacher.path or config.student.path
    if path is None:
        return None
    tokenizer = tokenizer_at(path)
    check_tokenizers(config, tokenizer, source=path)
    return tokenizer


def build_data(
    config: DictConfig, tokenizer: Any | None, *, classes: Sequence[str] | None = None
) -> Any:
    """The train, validation and test parts that `data` describes.

    Args:
        config: its `data`, and the given models where `classes` is None.
        tokenizer: as `build_tokenizer` gives it.
        classes: names of the classes of opened models, in the order of their numbers.

    Raises:
        BadInput: a setting is wrong, or the data does not suit the given models.
    """
    known = given_classes(config) if classes is None else tuple(classes)
    settings = OmegaConf.to_container(config.data, resolve=True)
    target = import_data(settings.pop("_target_"), list(config.allow_modules))
    if problems := list(signature_problems("data", target, settings)):
        raise BadInput("\n".join(problems))
    given = {"classes": known} if "classes" in signature(target).parameters else {}
    data = target(tokenizer=tokenizer, cache_dir=cache_folder() / "data", **settings, **given)
    if known and (labels := getattr(data, "labels", ())):
        check_numbers(labels, known, told=settings.get("labels") is not None)
    if data.tokenizer is not tokenizer:
        check_tokenizers(config, data.tokenizer, source="the data")
    return data


def given_classes(config: DictConfig) -> tuple[str, ...]:
    """Names of the classes of the given classifiers, in the order of their numbers.

    Raises:
        BadInput: teachers and student do not number their classes alike.
    """
    if config.task != "classification":
        return ()
    trusted = {"teacher.path": bool(config.teacher.get("trust_remote_code", False))}
    read = {
        setting: config_at(path, trust_remote_code=trusted.get(setting, False))
        for setting, path in named_checkpoints(config).items()
    }
    named = {
        setting: class_names(found)
        for setting, found in read.items()
        # a callback's teacher may be a bare encoder, asked for features alone
        if not setting.startswith("callbacks.") or classes_of(found)
    }
    return shared_names(named, told=config.data.get("labels") is not None)


def name_classes(config: DictConfig, model: torch.nn.Module, data: Any) -> None:
    """Give a classifier without names for its classes those of the data: its export keeps them."""
    if config.task != "classification":
        return
    labels, settings = list(getattr(data, "labels", ())), cast(Any, model.config)
    own = class_names(settings.to_dict())
    if len(own) == len(labels) and are_placeholders(own) and not are_numbers(labels):
        settings.id2label = dict(enumerate(labels))
        settings.label2id = {name: number for number, name in enumerate(labels)}


def teacher_folder(config: DictConfig, data: Any, *, metrics: Path) -> Path | None:
    """The teacher's checkpoint: given, or trained on first use and cached; None without one."""
    if config.teacher.kind == "none":
        return None
    if config.teacher.kind == "hf":
        only_served = config.teacher.host == "served" and config.student.kind == "hf"
        return None if only_served else checkpoint_folder(config.teacher.path)
    folder = cache_folder() / "teachers" / embedded_key(config, data)
    folder.parent.mkdir(parents=True, exist_ok=True)
    wait_for_first_rank(folder)
    with FileLock(f"{folder}.lock"):  # other ranks and other runs wait, then load
        if not folder.exists():
            model = train_embedded(config, data, metrics=metrics)
            beside = folder.with_name(f"{folder.name}.{os.getpid()}")
            shutil.rmtree(beside, ignore_errors=True)
            model.save_pretrained(beside)
            data.tokenizer.save_pretrained(beside)
            beside.replace(folder)
    return folder


def wait_for_first_rank(folder: Path) -> None:
    """Let the machine's first rank make it: it is the one that reports its progress."""
    parent = os.getppid()
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        while not folder.exists() and os.getppid() == parent:
            time.sleep(0.5)


def build_teacher_model(config: DictConfig, folder: Path | None) -> torch.nn.Module | None:
    """The whole teacher in this process; None where it lives elsewhere, or there is none."""
    if folder is None or config.teacher.host != "local":
        return None
    return load_hf_teacher(
        str(folder), task=config.task,
        trust_remote_code=config.teacher.get("trust_remote_code", False),
    )  # fmt: skip


def embedded_key(config: DictConfig, data: Any) -> str:
    """A hash of all that decides the embedded teacher's weights."""
    teacher = {k: v for k, v in config.teacher.items() if k not in NOT_OF_THE_WEIGHTS}
    facts = {"teacher": teacher, "data": data.fingerprint, "torch": torch.__version__, "format": 2}
    if config.task != "causal_lm":  # a teacher of embeddings is the encoder of a classifier
        facts["task"] = "classification"
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def train_embedded(config: DictConfig, data: Any, *, metrics: Path) -> torch.nn.Module:
    """The embedded teacher, trained by the same code path as any student.

    Only `config.teacher`, the data and the device enter: another run finds it by the same key,
    whatever its own student is told by `training` and `trainer`.
    """
    from compress.scripts.lib.precision import native_precision
    from compress.scripts.lib.trainer import JsonlLogger, train

    own = config.teacher
    trainer = OmegaConf.merge(
        config.trainer,
        {"max_steps": own.max_steps, "batch_size": own.batch_size, "devices": 1, "num_nodes": 1,
         "strategy": "auto", "accumulate": 1, "clip_norm": 1.0, "patience": None,
         "precision": native_precision(config.trainer.accelerator)},
    )  # fmt: skip
    training = OmegaConf.create(
        {"learning_rate": own.learning_rate, "warmup_steps": own.warmup_steps}
    )
    task = "causal_lm" if config.task == "causal_lm" else "classification"
    module = train(
        student=embedded_model(OmegaConf.merge(config, {"task": task}), data), teacher=None,
        data=data, trainer=trainer, training=training, callbacks=[],
        loggers=[JsonlLogger(metrics, "teacher")], seed=config.teacher.seed, task=task,
        verbose=config.verbose,
    )  # fmt: skip
    return module.student


def build_student(
    config: DictConfig, teacher: torch.nn.Module | None, folder: Path | None = None
) -> torch.nn.Module:
    """A trainable float32 student, before anything is attached.

    Args:
        config: `student.kind` decides.
        teacher: the teacher, where it is whole in this process.
        folder: its checkpoint: where the teacher is elsewhere, only the kept layers are read.
    """
    kind = config.student.kind
    if kind == "hf":
        student = load_hf_teacher(
            config.student.path, task=config.task, new_head=config.task == "classification"
        )
        return student.float().requires_grad_(True).train()
    if folder is not None and config.task == "causal_lm":
        try:
            # not of the teacher in memory: its weights may be rounded to its own dtype by now
            return student_from_checkpoint(folder, layers=config.student.layers)
        except UnsupportedModel:
            if teacher is None:
                raise
    if folder is not None and config.task != "causal_lm":
        # read again: the teacher in memory may be rounded to its own dtype by now
        teacher = load_hf_teacher(str(folder), task=config.task)
    if teacher is None:
        raise BadInput(f"student={kind} is made of a teacher, but teacher=none: use student=hf")
    layers = config.student.layers or config_of(teacher).num_hidden_layers
    return student_from_teacher(teacher, layers=layers)


def check_pair(teacher: torch.nn.Module | None, student: torch.nn.Module, tokenizer: Any) -> None:
    """Refuse models with fewer rows than the tokenizer has tokens.

    Raises:
        BadInput: with both sizes.
    """
    sizes = {"student": config_of(student).vocab_size}
    if teacher is not None:
        sizes["teacher"] = config_of(teacher).vocab_size
    too_small = {k: v for k, v in sizes.items() if v < len(tokenizer)}
    if too_small:
        raise BadInput(
            f"the tokenizer has {len(tokenizer)} tokens, but the vocabulary of "
            + ", ".join(f"the {who} has {size}" for who, size in too_small.items())
        )


def build_callbacks(config: DictConfig) -> list[L.Callback]:
    """The recipe's callbacks, in its order.

    Raises:
        BadInput: settings of a kind that a callback does not take, all listed, or what it refuses.
    """
    asked = OmegaConf.to_container(config.callbacks, resolve=True)
    targets = {
        name: import_callback(settings.pop("_target_"), list(config.allow_modules))
        for name, settings in asked.items()
    }
    problems = [
        problem
        for name, target in targets.items()
        for problem in signature_problems(f"callbacks.{name}", target, asked[name])
    ]
    if problems:
        raise BadInput("\n".join(problems))
    made = []
    for name, target in targets.items():
        try:
            made.append(target(**asked[name]))
        except (TypeError, ValueError) as error:
            raise BadInput(f"callbacks.{name}: {error}") from error
    return made
