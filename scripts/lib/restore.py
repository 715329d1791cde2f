"""The model of a run as it was trained, transforms attached: from its recipe and its checkpoint.

A run folder may come from elsewhere: its config.yaml runs no code that the command line of whoever
opens it does not allow, reads no environment, and no server that it names is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compress.contract import Batch, Signal, Want
from compress.errors import BadInput
from compress.models import config_of
from compress.scripts.lib import build, hosts, trainer
from compress.scripts.lib.checkpoints import load_checkpoint
from compress.scripts.lib.config import recipes_folder
from compress.scripts.lib.progress import quiet_libraries
from compress.scripts.lib.targets import check_resolved, check_run


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A trained student, the data that it learned from, the configuration of its run."""

    student: torch.nn.Module
    data: Any
    config: Any


def is_run_folder(path: str | Path) -> bool:
    """Whether `scripts/train.py` wrote this folder."""
    return (Path(path) / "config.yaml").is_file() and (Path(path) / "checkpoints").is_dir()


def restore_student(
    run_dir: str | Path,
    *,
    checkpoint: str = "last",
    allow_modules: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Restored:
    """The student as the checkpoint holds it: masked, fake-quantised, and shrunk where it was.

    The run is resumed by the very code that trains, at the step where it stood, so that nothing
    is left to be trained.

    Args:
        run_dir: of a run, finished or not.
        checkpoint: `last`, or the path of one.
        allow_modules: modules beside our own whose classes the run may name.
        trust_remote_code: run Python that comes with the teacher's checkpoint, where the run did.

    Raises:
        BadInput: no run folder, no checkpoint, or one that is damaged; or the run needs code that
            is not allowed.
    """
    path = Path(run_dir)
    if not is_run_folder(path):
        raise BadInput(f"{path} is no run folder: it has no config.yaml and checkpoints/")
    quiet_libraries()
    config = run_config(
        path / "config.yaml", allow_modules=allow_modules, trust_remote_code=trust_remote_code
    )
    saved = path / "checkpoints" / "last.ckpt" if checkpoint == "last" else Path(checkpoint)
    state = load_checkpoint(saved)
    data = build.build_data(config, build.build_tokenizer(config))
    folder = build.teacher_folder(config, data, metrics=path / "metrics.jsonl")
    model = build.build_teacher_model(config, folder)
    student = build.build_student(config, model, folder)
    build.name_classes(config, student, data)
    teacher: Any = _Unasked()
    if config.teacher.host != "served" or config.teacher.kind == "none":
        vocab_size = int(config_of(student).vocab_size)
        teacher = hosts.build_teacher(
            config, folder=folder, model=model, vocab_size=vocab_size, data=data
        )
    callbacks, hold = build.build_callbacks(config), _Hold()
    # in this very process, however many ranks trained it: their checkpoint is one whole file
    alone = {"strategy": "auto", "devices": 1, "num_nodes": 1}
    at_once = OmegaConf.merge(config.trainer, {**alone, "max_steps": int(state["global_step"])})
    module = trainer.train(
        student=student, teacher=teacher, data=data, trainer=at_once, training=config.training,
        callbacks=[*callbacks, hold], loggers=[], seed=config.seed, task=config.task,
        verbose=False, ckpt_path=saved, loaders=_loaders_of(state),
    )  # fmt: skip
    for callback in callbacks:
        # a run that is over calls this no more, but it marks what was frozen
        callback.on_train_start(hold.trainer, module)
    for callback in callbacks:
        module.student = getattr(callback, "finalise", lambda m: m)(module.student)
    return Restored(student=module.student.eval(), data=data, config=config)


def _loaders_of(state: dict[str, Any]) -> int:
    """How many ranks shared the data when this checkpoint was written."""
    (place,) = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    return int(place["world_size"])


def run_config(
    file: Path, *, allow_modules: Sequence[str] = (), trust_remote_code: bool = False
) -> Any:
    """A run's configuration; settings that are newer than it have their defaults.

    Args:
        file: config.yaml of the run. What it says of `allow_modules` counts for nothing.
        allow_modules: as `restore_student` takes them.
        trust_remote_code: likewise.

    Raises:
        BadInput: it is damaged, not what scripts/train.py wrote, or needs code that is not allowed.
    """
    import yaml

    try:
        config = OmegaConf.load(file)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise BadInput(f"{file} is damaged: {' '.join(str(error).split())}") from error
    plain = OmegaConf.to_container(config)
    check_resolved(plain, whose=str(file))
    groups = ("data", "teacher", "student", "trainer", "training", "callbacks")
    absent = [g for g in groups if not isinstance(config, DictConfig) or not _is_group(config, g)]
    if absent:
        raise BadInput(
            f"{file} is no configuration of a run: it has no {', '.join(absent)}; name a folder as "
            "scripts/train.py leaves it"
        )
    check_run(plain, file=file, allow_modules=allow_modules, trusted=trust_remote_code)
    top = yaml.safe_load((recipes_folder() / "train.yaml").read_text())
    config = OmegaConf.merge({k: v for k, v in top.items() if k != "defaults"}, config)
    for group, name in (("trainer", "cpu"), ("training", "default")):
        defaults = OmegaConf.load(recipes_folder() / group / f"{name}.yaml")
        config[group] = OmegaConf.merge(defaults, config[group])
    config.allow_modules = list(allow_modules)
    return config


def _is_group(config: DictConfig, group: str) -> bool:
    return isinstance(config.get(group), DictConfig)


class _Unasked:
    """A server's teacher once the run is over: nothing is left to be asked, so no server is."""

    def signal(self, batch: Batch, want: Want) -> Signal:
        """No answer.

        Raises:
            BadInput: always.
        """
        raise BadInput("a run that is restored asks no server")


class _Hold(L.Callback):
    """Keeps the trainer in reach."""

    trainer: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember it."""
        self.trainer = trainer
