"""Weights & Biases, CSV or nothing, beside the run folder's own metrics.jsonl."""

import netrc
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from omegaconf import DictConfig, OmegaConf

from compress.scripts.lib.checkpoints import load_checkpoint
from compress.scripts.lib.secrets import masked
from compress.scripts.lib.trainer import JsonlLogger, forget_later_steps


def build_loggers(config: DictConfig, path: Path, *, resumed_from: Path | None) -> list[Logger]:
    """The loggers of a run; metrics.jsonl always, cut back to where a resumed run stands."""
    metrics = path / "metrics.jsonl"
    if resumed_from is not None:
        step = load_checkpoint(resumed_from)["global_step"]
        forget_later_steps(metrics, phase="train", after=step)
    made: list[Logger] = [JsonlLogger(metrics, "train")]
    if config.logger.kind == "csv":
        made.append(CSVLogger(path, name="", version=""))
    if config.logger.kind == "wandb":
        made.append(_wandb(config, path))
    return made


def wandb_is_online() -> bool:
    """Whether a key is at hand (environment or ~/.netrc) and the mode was not set to offline."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def _wandb(config: DictConfig, path: Path) -> Logger:
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(
        project=config.logger.project,
        save_dir=path,
        offline=not wandb_is_online(),
        group=config.logger.group,
        tags=list(config.logger.tags),
        settings=wandb.Settings(silent=True),
    )
    logger._wandb_init.pop("anonymous", None)  # wandb warns of it, whatever its value
    logger.log_hyperparams(masked(OmegaConf.to_container(config, resolve=True)))
    return logger


def finish(config: DictConfig, report: dict[str, Any], path: Path) -> None:
    """Log the final figures and the exported folder, and say how an offline run is sent."""
    if config.logger.kind != "wandb":
        return
    import wandb

    if wandb.run is None:
        return
    wandb.run.summary.update({k: report[k] for k in ("quality", "size", "status") if k in report})
    for entry in report["exports"]:
        artifact = wandb.Artifact(f"export-{entry['target']}", type="model", metadata=entry)
        artifact.add_dir(str(path / entry["path"]))
        wandb.run.log_artifact(artifact)
    folder = Path(wandb.run.dir).parent
    wandb.finish()
    if not wandb_is_online():
        print(f"W&B: no key, kept offline; send it with: wandb sync {os.path.relpath(folder)}")
