"""What `auto` means for `trainer.precision` and `teacher.dtype` on this machine.

bfloat16 where the processor multiplies it itself, float32 elsewhere: a CPU that has to emulate
bfloat16 takes ten times as long for a step.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compress.errors import BadInput

MULTIPLIES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of /proc/cpuinfo; the last is ARM's."""

AMPERE = 8
"""CUDA's compute capability from which GPUs multiply bfloat16."""


def settle_precision(config: Any, *, recorded: Path) -> None:
    """Replace `auto` in a composed configuration by what it means here.

    Args:
        config: changed in place.
        recorded: the config.yaml of the run that is gone on with. Where there is one, its word
            holds, so that a run goes on bit for bit on a machine of another kind too.

    Raises:
        BadInput: `recorded` is damaged.
    """
    accelerator = config.trainer.accelerator
    dtype = "bfloat16" if multiplies_bfloat16(accelerator) else "float32"
    settled = (("trainer", "precision", native_precision(accelerator)), ("teacher", "dtype", dtype))
    asked = [row for row in settled if config[row[0]].get(row[1]) == "auto"]
    known = _words_of(recorded) if asked and config.ckpt is not None else {}
    for group, key, word in asked:
        config[group][key] = known.get(group, {}).get(key) or word


def native_precision(accelerator: str) -> str:
    """Lightning's word for what `trainer.precision=auto` means on that kind of device here."""
    return "bf16-mixed" if multiplies_bfloat16(accelerator) else "32-true"


def _words_of(recorded: Path) -> dict[str, Any]:
    if not recorded.is_file():
        return {}
    import yaml

    try:
        words = yaml.safe_load(recorded.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(f"{recorded} is damaged: {' '.join(str(error).split())}") from error
    groups = words if isinstance(words, dict) else {}
    absent = [key for key in ("trainer", "teacher") if not isinstance(groups.get(key), dict)]
    if absent:
        raise BadInput(
            f"{recorded} is no configuration of a run: it has no {', '.join(absent)}. Say how the "
            "run began: trainer.precision=32-true or bf16-mixed, and teacher.dtype="
        )
    return groups


def multiplies_bfloat16(accelerator: str) -> bool:
    """Whether this machine's device of that kind has instructions for bfloat16 products."""
    if accelerator in ("gpu", "cuda", "auto"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_capability()[0] >= AMPERE
        if accelerator != "auto":
            return True  # refused elsewhere: there is no GPU
    if accelerator in ("mps", "tpu"):
        return accelerator == "tpu"
    return not MULTIPLIES.isdisjoint(processor_flags(Path("/proc/cpuinfo")))


def processor_flags(cpuinfo: Path) -> Iterable[str]:
    """What the processor says it has; nothing where the system does not tell."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":") for line in lines)
    return next((v.split() for k, _, v in named if k.strip() in ("flags", "Features")), [])
