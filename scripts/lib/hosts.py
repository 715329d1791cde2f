"""Where the teacher lives while the student learns: local, deepspeed, cached or served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from compress.contract import IGNORED, Teacher, union_of_wants
from compress.errors import BadInput
from compress.scripts.lib.build import cache_folder
from compress.teachers.cached import CachedTeacher, Identity, fingerprint_of_tokenizer
from compress.teachers.checkpoints import fingerprint_of_checkpoint, skeleton_of
from compress.teachers.deepspeed import DeepSpeedTeacher
from compress.teachers.local import LocalTeacher
from compress.teachers.quality import teacher_loss
from compress.teachers.served import ServedTeacher


def build_teacher(
    config: DictConfig,
    *,
    folder: Path | None,
    model: torch.nn.Module | None,
    vocab_size: int,
    data: Any,
) -> Teacher | None:
    """The teacher as callbacks see it.

    Args:
        config: `teacher.host` decides.
        folder: its checkpoint; None without a teacher, or where only a server has it.
        model: the teacher itself, where `host` is `local`.
        vocab_size: of the student; bounds what a server may answer.
        data: its tokenizer and fingerprint are compared with a cache's.
    """
    settings = config.teacher
    if settings.kind == "none":
        return None
    name = settings.path or (folder.name if folder else None)
    if settings.host == "local":
        return LocalTeacher(model, dtype=settings.dtype, task=config.task, name_or_path=name)
    if settings.host == "served":
        return _served(settings, vocab_size, data)
    teacher: Any
    if settings.host == "cached":
        identity = identity_of(settings, folder, data)
        teacher = CachedTeacher(cache_path(settings, identity), **identity.__dict__)
    else:
        teacher = DeepSpeedTeacher(
            str(folder), dtype=settings.dtype, task=config.task,
            trust_remote_code=settings.get("trust_remote_code", False),
            **OmegaConf.to_container(settings.deepspeed),
        )  # fmt: skip
    if folder is not None:
        teacher.skeleton = skeleton_of(folder, task=config.task)
    return teacher


def _served(settings: DictConfig, vocab_size: int, data: Any) -> ServedTeacher:
    served = OmegaConf.to_container(settings.served)
    name = served.pop("model") or settings.path
    if name is None:
        raise BadInput("teacher.host=served needs the name that the server serves: teacher.served.model=...")  # noqa: E501  # fmt: skip
    return ServedTeacher(
        served.pop("url"), name, vocab_size=vocab_size, tokenizer=data.tokenizer, **served
    )


def identity_of(settings: DictConfig, folder: Path | None, data: Any) -> Identity:
    """What a cache must be made of to serve this run: a teacher in another dtype is another one."""
    if folder is None:
        teacher = f"served {settings.served.model or settings.path}"
    else:
        dtype = f".{settings.dtype}" if settings.dtype else ""
        teacher = fingerprint_of_checkpoint(folder) + dtype
    return Identity(
        teacher=teacher,
        tokenizer=fingerprint_of_tokenizer(data.tokenizer),
        data=data.fingerprint,
    )


def cache_path(settings: DictConfig, identity: Identity) -> Path:
    """`teacher.cache`, or a folder named by what the cache is made of."""
    if settings.cache is not None:
        return Path(settings.cache).expanduser()
    name = f"{identity.teacher}-{identity.tokenizer}-{identity.data}".replace("/", "_")
    return cache_folder() / "teacher_caches" / name


class TeacherReady(L.Callback):
    """Refuses before the first step what the teacher cannot give; measures its loss.

    The loss is asked when all ranks are there, since a sharded teacher answers to all or to none.
    """

    def __init__(self, teacher: Any, batches: Any, *, keep: Callable[[float | None], None]) -> None:
        """`batches` makes the validation batches; `keep` is told the loss."""
        self.teacher, self.batches, self.keep = teacher, batches, keep

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Once, before the first batch."""
        wanted = union_of_wants(pl_module._sources())
        refuse_unknown_features(self.teacher, wanted.features)
        if trainer.global_step == 0:
            self.keep(self._loss(pl_module.device))

    def _loss(self, device: torch.device) -> float | None:
        batches = list(self.batches())
        if isinstance(self.teacher, CachedTeacher):
            kept = self.teacher.validation
            return kept["loss"] if kept.get("tokens") == predicted_tokens(batches) else None
        if isinstance(self.teacher, ServedTeacher):
            return None
        return teacher_loss(self.teacher, batches, device=device)


def predicted_tokens(batches: list[Any]) -> int:
    """How many labels these batches hold: with equal data, equal numbers are equal tokens."""
    return sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)


def refuse_unknown_features(teacher: Any, names: tuple[str, ...]) -> None:
    """Refuse features that a cached or served teacher does not hold.

    Raises:
        BadInput: naming them.
    """
    stored = {} if isinstance(teacher, ServedTeacher) else getattr(teacher, "features", None)
    missing = [] if stored is None else [name for name in names if name not in stored]
    if missing:
        raise BadInput(
            f"the {type(teacher).__name__} holds no feature {', '.join(missing)}, only "
            f"{', '.join(stored) or 'logits'}: recipe=cache_teacher cache.features=[...] keeps "
            "them, teacher.host=local or deepspeed makes them"
        )
