"""Facts about a run: environment, bytes, layers, and the command that repeats it."""

import json
import platform
import shlex
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compress.models import config_of
from compress.transforms import INPUT_QUANTIZER, transformed_layers, transforms_of


def environment() -> dict[str, Any]:
    """Versions and the machine, in words."""
    packages = ("torch", "lightning", "transformers", "compressed-tensors", "datasets")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "machine": machine(),
        "commit": git_commit(),
    }


def machine() -> str:
    """Processor, cores, memory and accelerator."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as stream:
            names = [line.split(":", 1)[1].strip() for line in stream if "model name" in line]
        model = names[0] if names else model
    except OSError:
        pass  # not Linux: the platform's own words do
    return f"{model}, {torch.get_num_threads()} threads"


def git_commit() -> str | None:
    """The checkout's commit, if this is a checkout."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).resolve().parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return answer.stdout.strip() or None


def reproduce(words: list[str], script: str) -> str:
    """The exact command, quoted for a shell."""
    return shlex.join(["python", script, *words])


def provenance(report: Mapping[str, Any], *, seed: int, data: str) -> str:
    """What else must be equal to make the same weights again, in one line for the model card."""
    made = dict(report["environment"])
    machine_, commit = made.pop("machine"), made.pop("commit")
    versions = ", ".join(f"{name} {number}" for name, number in made.items())
    return f"Made with {versions}; on {machine_}; seed {seed}, data {data}, commit {commit}."


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of the weights as float32 files would hold them; tied weights count once."""
    # `parameters` tells them apart by the object: on `meta` every tensor lies at address 0
    return sum(p.numel() * 4 for p in model.parameters())


def teacher_bytes(model: torch.nn.Module, *, checkpoint: Path | None) -> int:
    """Bytes of the teacher's weights as its checkpoint holds them.

    Args:
        model: the teacher, or its modules without weights.
        checkpoint: the folder that was given or downloaded; None for a teacher that was trained
            here. Without weight files there, the weights count in the dtype that the model's
            configuration names.
    """
    files = weight_files(checkpoint) if checkpoint is not None else []
    return sum(file.stat().st_size for file in files) if files else stored_bytes(model)


def stored_bytes(model: torch.nn.Module) -> int:
    """Bytes of the weights in the dtype that the model's configuration names: its files'."""
    named = getattr(config_of(model), "dtype", None)  # not a weight's: it may be cast by now
    return sum(p.numel() * (named or p.dtype).itemsize for p in model.parameters())


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a checkpoint is loaded from, each once; other variants are not."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = json.loads(index.read_text())["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    return sorted(folder.glob("*.safetensors"))


@torch.no_grad()
def layer_facts(student: torch.nn.Module) -> list[dict[str, Any]]:
    """Bits, density and relative quantisation error of each transformed layer."""
    return [_facts(name, layer) for name, layer in transformed_layers(student)]


def _facts(name: str, layer: Any) -> dict[str, Any]:
    chain = transforms_of(layer)
    weight = used = layer.parametrizations.weight.original if chain else layer.weight
    facts: dict[str, Any] = {"name": name, "bits": None, "density": 1.0, "error": None}
    for transform in chain:
        record = transform.scheme()
        before, used = used, transform(used)
        if record.kind == "mask":
            facts["density"] = float((used != 0).float().mean())
        elif record.kind == "quantize":
            facts["bits"] = record.args.num_bits
            facts["error"] = float((used - before).norm() / before.norm().clamp(min=1e-12))
    facts["inputs"] = hasattr(layer, INPUT_QUANTIZER)
    facts["shape"] = list(weight.shape)
    return facts
