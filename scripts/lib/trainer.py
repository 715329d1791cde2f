"""From the `trainer`, `training` and `logger` groups to a Lightning Trainer, and one training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from compress.callbacks.base import CompressionCallback
from compress.contract import Teacher
from compress.data.loader import ResumableLoader
from compress.module import CompressionModule
from compress.scripts.lib.checkpoints import SaveOnSignal, plugins_for
from compress.scripts.lib.progress import StepProgress
from compress.scripts.lib.run_folder import write_atomically
from compress.scripts.lib.strategies import build_strategy
from compress.sharding import make_whole, whole_weights


class JsonlLogger(Logger):
    """Appends every logged step to metrics.jsonl: the source of the report's curves."""

    def __init__(self, path: Path, phase: str) -> None:
        """`phase` tells the teacher's training from the student's."""
        super().__init__()
        self.path, self.phase = path, phase

    @property
    def name(self) -> str:
        """The phase."""
        return self.phase

    @property
    def version(self) -> str:
        """There is one file a run."""
        return "0"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """One line a call."""
        line = {"step": step, "phase": self.phase, **{k: float(v) for k, v in metrics.items()}}
        with self.path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration lies in config.yaml."""


def forget_later_steps(path: Path, *, phase: str, after: int) -> None:
    """Drop lines of steps that a resumed run will take again."""
    if not path.exists():
        return
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [m for m in lines if m["phase"] != phase or m["step"] <= after]
    write_atomically(path, "".join(json.dumps(m) + "\n" for m in kept))


def train(
    *,
    student: torch.nn.Module,
    teacher: Teacher | None,
    data: Any,
    trainer: DictConfig,
    training: DictConfig,
    callbacks: list[L.Callback],
    loggers: list[Logger],
    seed: int,
    task: str = "causal_lm",
    verbose: bool = True,
    checkpoints: Path | None = None,
    ckpt_path: Path | None = None,
    loaders: int | None = None,
) -> CompressionModule:
    """One whole training; answers the module, its transforms still attached.

    `loaders` share an epoch of data: None, one a rank; a number where fewer ranks restore a run.
    """
    module = CompressionModule(
        student=student, teacher=teacher, task=task, **OmegaConf.to_container(training)
    )
    if trainer.checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    phase = next((one.phase for one in loggers if isinstance(one, JsonlLogger)), "train")
    extra: list[L.Callback] = [StepProgress(phase)] if verbose else []
    if trainer.patience is not None:
        extra.append(EarlyStopping("val/loss", patience=trainer.patience, mode="min"))
    if checkpoints is not None:
        extra.append(last_checkpoint(checkpoints, every=trainer.checkpoint_every))
        extra.append(SaveOnSignal(checkpoints / "last.ckpt"))
    if trainer.strategy == "deepspeed_zero2":
        extra.append(FreshMasters())
    fitter = L.Trainer(
        **trainer_settings(trainer),
        callbacks=[*callbacks, *extra],
        logger=loggers or False,
        plugins=plugins_for(trainer.strategy),
        enable_checkpointing=checkpoints is not None,
        enable_progress_bar=False,
    )
    loader = training_loader(
        data, trainer, seed=seed, rank=fitter.global_rank, ranks=loaders or fitter.world_size
    )
    fitter.fit(module, loader, validation_loader(data, trainer), ckpt_path=ckpt_path)
    if fitter.interrupted:
        raise KeyboardInterrupt
    if trainer.max_steps == 0:  # Lightning attaches, then skips the loop and all that starts it
        with whole_weights(module.student):
            for callback in callbacks:
                if isinstance(callback, CompressionCallback):
                    callback.compress_at_once(module.student, data.train)
    ended_between = fitter.global_step % trainer.checkpoint_every or trainer.max_steps == 0
    if checkpoints is not None and ended_between:
        # what is exported from a run later must be what it ended with
        fitter.save_checkpoint(checkpoints / "last.ckpt")
    make_whole(module.student)
    return module


class FreshMasters(L.Callback):
    """Copies scales and weights that callbacks set before the first step to ZeRO-2's fp32 copies.

    DeepSpeed made these when it took the student over; its first step would bring the old values
    back.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """The last of the callbacks."""
        trainer.strategy.deepspeed_engine.optimizer.refresh_fp32_params()


def trainer_settings(trainer: DictConfig) -> dict[str, Any]:
    """The Lightning Trainer's own arguments."""
    return {
        "accelerator": trainer.accelerator,
        "strategy": build_strategy(trainer),
        "devices": trainer.devices,
        "num_nodes": trainer.num_nodes,
        "precision": trainer.precision,
        "max_steps": trainer.max_steps,
        "accumulate_grad_batches": trainer.accumulate,
        "gradient_clip_val": trainer.clip_norm,
        "val_check_interval": trainer.validate_every * trainer.accumulate,
        "check_val_every_n_epoch": None,
        "limit_val_batches": trainer.validation_batches,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 5,
        "enable_model_summary": False,
        "use_distributed_sampler": False,  # our loader shards by rank and resumes by position
    }


def last_checkpoint(folder: Path, *, every: int) -> ModelCheckpoint:
    """Keeps the newest checkpoint alone, written beside and renamed by Lightning."""
    return ModelCheckpoint(
        dirpath=folder,
        filename="last",
        every_n_train_steps=every,
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )


def training_loader(
    data: Any, trainer: DictConfig, *, seed: int, rank: int, ranks: int
) -> ResumableLoader:
    """Batches in an order that is a pure function of seed and epoch."""
    return ResumableLoader(
        data.train, batch_size=trainer.batch_size, seed=seed, rank=rank, world_size=ranks,
        num_workers=trainer.workers,
    )  # fmt: skip


def validation_loader(data: Any, trainer: DictConfig) -> torch.utils.data.DataLoader[Any]:
    """The held-out batches that every loss is measured on, in one fixed order."""
    return torch.utils.data.DataLoader(data.validation, batch_size=trainer.batch_size)


def validation_batches(data: Any, trainer: DictConfig) -> Callable[[], Any]:
    """The same batches again and again, for losses outside Lightning."""
    from itertools import islice

    return lambda: islice(iter(validation_loader(data, trainer)), trainer.validation_batches)
