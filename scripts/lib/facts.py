"""Facts about a run: environment, bytes, layers, and the command that repeats it."""

import platform
import shlex
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

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
    from pathlib import Path

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
    """Bytes of the weights as float32 files would hold them; tied tensors count once."""
    tensors = {p.data_ptr(): p for p in model.parameters()}
    return sum(p.numel() * 4 for p in tensors.values())


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
