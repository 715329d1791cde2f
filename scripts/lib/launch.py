"""Several ranks on one machine: starts them, watches them, and says which one ended the run.

Under torchrun, SLURM or a TrainJob the ranks exist already; then nothing here is used.
"""

import logging
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from compress.errors import BadInput

LAUNCHED = "COMPRESS_LAUNCHED"
"""Set in ranks that this file started: rank 0 speaks for them, the others leave it to us."""


def started_elsewhere() -> bool:
    """Whether a launcher made this process one rank of several."""
    slurm = os.environ.get("SLURM_PROCID") is not None and int(_tasks()) > 1
    return "RANK" in os.environ or "LOCAL_RANK" in os.environ or slurm


def rank_here() -> int:
    """This process among those that a launcher started; 0 where it is alone."""
    found = (os.environ.get(key) for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((int(rank) for rank in found if rank is not None), 0)


def ranks_here() -> int:
    """How many processes a launcher started; 1 where this one is alone."""
    return int(os.environ.get("WORLD_SIZE") or (_tasks() if "SLURM_PROCID" in os.environ else 1))


def _tasks() -> str:
    return os.environ.get("SLURM_NTASKS", "1")


def ranks_to_start(trainer: Any) -> int:
    """How many ranks this command should start; 0 where it is to run in this very process.

    Raises:
        BadInput: several nodes are asked for, which one command cannot start.
    """
    if started_elsewhere() or trainer.strategy == "auto":
        return 0
    if trainer.num_nodes > 1:
        raise BadInput(
            f"trainer.num_nodes={trainer.num_nodes}: start this command on every node, with "
            "torchrun, SLURM or a TrainJob; docs/scale.md has the files"
        )
    count = devices_of(trainer)
    return count if count > 1 else 0


def devices_of(trainer: Any) -> int:
    """How many devices of this machine `trainer.devices` means."""
    devices = trainer.devices
    if isinstance(devices, str) and devices != "auto":
        devices = int(devices) if devices.lstrip("-").isdigit() else devices.split(",")
    if devices in ("auto", -1):
        import torch

        return torch.cuda.device_count() if trainer.accelerator != "cpu" else 1
    return int(devices) if isinstance(devices, int) else len(devices)


def launch(words: list[str], *, ranks: int, run_dir: Path, module: str) -> int:
    """Run `python -m module words` as so many ranks; answers the exit status of the whole.

    A rank that ends badly ends the others (torch's elastic agent sees to that).
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[LAUNCHED] = "1"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns where all parameters learn
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, max_restarts=0, run_id=uuid.uuid4().hex,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
    )  # fmt: skip
    try:
        elastic_launch(settings, sys.executable)("-m", module, *words)
    except ChildFailedError as error:
        return told(error.failures, ranks=ranks, run_dir=run_dir)
    except SignalException:
        return 130
    return 0


def several_ranks() -> bool:
    """Whether this process works together with others."""
    from torch import distributed

    together = distributed.is_available() and distributed.is_initialized()
    return bool(together and distributed.get_world_size() > 1)


def part_ranks() -> None:
    """End working together, all ranks at once; each goes on alone."""
    from torch import distributed

    distributed.barrier()
    distributed.destroy_process_group()


def record(error: BaseException) -> None:
    """Leave a rank's error to the process that started it."""
    if LAUNCHED in os.environ and "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)  # type: ignore[arg-type]


def speaks() -> bool:
    """Whether this process prints what all ranks would: alone, or rank 0 of several."""
    return LAUNCHED not in os.environ or rank_here() == 0


def told(failures: dict[int, Any], *, ranks: int, run_dir: Path) -> int:
    """Say which rank ended first, unless rank 0 did and has said why; answers the exit status."""
    rank, first = min(failures.items(), key=lambda item: item[1].timestamp)
    if 0 in failures and failures[0].exitcode in (2, 130):
        return int(failures[0].exitcode)
    how = f"signal {-first.exitcode}" if first.exitcode < 0 else f"exit status {first.exitcode}"
    left = first.error_file_data.get("message")  # by `record`; else torch makes up words of its own
    own_words = str(left["message"]).strip() if isinstance(left, dict) else ""
    message = (
        f"rank {rank} of {ranks} (process {first.pid}) ended with {how}"
        + (f": {own_words}" if own_words else "")
        + f"; the other ranks were stopped. {way_on(run_dir)}"
    )
    print(message, file=sys.stderr)
    _mark_failed(run_dir, message)
    return 2 if first.exitcode == 2 else 1


def way_on(run_dir: Path) -> str:
    """How to go on after a rank was lost."""
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        return f"Go on from the last checkpoint: the same command with run_dir={run_dir} ckpt=last"
    return f"There is no checkpoint under {run_dir} yet: start again with another run_dir="


def _mark_failed(run_dir: Path, message: str) -> None:
    from compress.scripts.lib.run_folder import read_json, write_json
    from compress.scripts.lib.secrets import masked_text

    report = read_json(run_dir / "report.json")
    if report is not None and report["status"] != "finished":
        failed = {"status": "failed", "error": masked_text(message)}
        write_json(run_dir / "report.json", {**report, **failed})
