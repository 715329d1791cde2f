"""`recipe=cache_teacher`: the teacher's answers to the training data, written once; resumable."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from compress.contract import Batch
from compress.errors import BadInput
from compress.scripts.lib import build, hosts, trainer
from compress.scripts.lib.facts import reproduce
from compress.scripts.lib.launch import rank_here, ranks_here
from compress.scripts.lib.run_folder import (
    RunFolder,
    choose_folder,
    write_atomically,
    write_json,
)
from compress.scripts.lib.secrets import masked, masked_words
from compress.teachers.cache_writer import write_cache
from compress.teachers.deepspeed import DeepSpeedTeacher
from compress.teachers.quality import teacher_loss


def cache_teacher(config: DictConfig, words: list[str]) -> dict[str, Any]:
    """Writes or finishes the cache; answers the run's report.

    Raises:
        BadInput: there is no teacher to run, or the folder holds another cache.
    """
    if config.teacher.kind == "none" or config.teacher.host == "cached":
        raise BadInput(
            f"recipe=cache_teacher runs a teacher: teacher={config.teacher.kind} "
            f"teacher.host={config.teacher.host} has none to run; use host local, deepspeed, served"
        )
    run_dir, _ = choose_folder(config, "cache_teacher")
    with RunFolder(run_dir, resuming=True) if rank_here() == 0 else nullcontext():
        return _cache_teacher(config, words, run_dir)


def _cache_teacher(config: DictConfig, words: list[str], run_dir: Path) -> dict[str, Any]:
    run_dir.mkdir(parents=True, exist_ok=True)
    data = build.build_data(config, build.build_tokenizer(config))
    folder = build.teacher_folder(config, data, metrics=run_dir / "metrics.jsonl")
    identity = hosts.identity_of(config.teacher, folder, data)
    path = hosts.cache_path(config.teacher, identity)
    teacher = _teacher(config, folder, data)
    settings = OmegaConf.to_container(config.cache)
    features = tuple(settings.pop("features"))
    device = _device(config)
    batches = shared_rows(data.train, config.trainer.batch_size, device=device)
    manifest = write_cache(
        teacher, batches, path, identity=identity,
        features=features, rank=rank_here(), ranks=ranks_here(), **settings,
        validation=lambda: _validation(teacher, data, config, device),
    )  # fmt: skip
    report = {
        "schema": 1, "recipe": "cache_teacher", "status": "finished",
        "command": reproduce(masked_words(words), "scripts/train.py"),
        "cache": {
            "path": str(path), "tokens": manifest.positions,
            "bytes_per_token": round(manifest.bytes_per_token, 2), "shards": len(manifest.shards),
            "features": manifest.features, "teacher_loss": manifest.validation.get("loss"),
        },
    }  # fmt: skip
    _tell(config, report, run_dir, path, manifest)
    return report


def _teacher(config: DictConfig, folder: Path | None, data: Any) -> Any:
    model = build.build_teacher_model(config, folder)
    teacher = hosts.build_teacher(
        config, folder=folder, model=model, vocab_size=_vocab_size(folder, data), data=data
    )
    if isinstance(teacher, DeepSpeedTeacher):
        teacher.build()
    return teacher


def _vocab_size(folder: Path | None, data: Any) -> int:
    from transformers import AutoConfig

    if folder is None:
        return len(data.tokenizer)
    return int(AutoConfig.from_pretrained(folder).get_text_config().vocab_size)


def shared_rows(dataset: Any, batch_size: int, *, device: torch.device) -> Iterator[Batch]:
    """This rank's rows in batches; equally many on every rank, as sharded teachers need it.

    Where the rows do not share out evenly, the last ranks go through an early row again.
    """
    rank, ranks = rank_here(), ranks_here()
    each = -(-len(dataset) // ranks)
    own = [(rank + ranks * place) % len(dataset) for place in range(each)]
    for first in range(0, each, batch_size):
        rows = [dataset[index] for index in own[first : first + batch_size]]
        batch = torch.utils.data.default_collate(rows)
        yield {key: value.to(device) for key, value in batch.items()}


def _device(config: DictConfig) -> torch.device:
    """The accelerator of this rank, where the trainer is to use one."""
    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cuda", torch.cuda.current_device())


def _validation(
    teacher: Any, data: Any, config: DictConfig, device: torch.device
) -> dict[str, float]:
    batches = list(trainer.validation_batches(data, config.trainer)())
    loss = teacher_loss(teacher, batches, device=device)
    return {} if loss is None else {"loss": loss, "tokens": hosts.predicted_tokens(batches)}


@rank_zero_only
def _tell(config: DictConfig, report: Any, run_dir: Path, path: Path, manifest: Any) -> None:
    asked = masked(OmegaConf.to_container(config, resolve=True))
    write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(asked)))
    write_json(run_dir / "report.json", report)
    if config.verbose:
        each = manifest.bytes_per_token
        dtype = f" teacher.dtype={config.teacher.dtype}" if config.teacher.dtype else ""
        print(
            f"{manifest.positions:,} tokens of {manifest.name_or_path} by this rank: "
            f"{each:.1f} bytes a token in {path}\n"
            f"Next: python scripts/train.py recipe=distill_qat teacher.host=cached "
            f"teacher.cache={path}" + dtype
        )
