"""ModelOpt's unified layout: FP8 and NVFP4 with `hf_quant_config.json`, for TensorRT-LLM and vLLM.

FP8: `weight` in float8_e4m3fn, scalar `weight_scale` and `input_scale` (fp32).
NVFP4: `weight` with two FP4 values a byte, `weight_scale` in float8_e4m3fn for each 16 columns,
scalar `weight_scale_2` and `input_scale`: the reciprocals of compressed-tensors' global scales.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedScheme
from compress.export.checkpoint import (
    SHARD_BYTES,
    checkpoint_tensors,
    read_tensors,
    save_tensors,
)
from compress.export.plan import ExportPlan
from compress.export.pooling import write_pooling
from compress.export.schemes import ignored, plan_name, quantization_config
from compress.export.sparsity import write_sparsity
from compress.export.vllm import write_config

PRODUCER = {"name": "modelopt", "version": "0.39.0"}
"""Whose layout this is; loaders read it, and none checks the version."""

KV_CACHE = {"num_bits": 8, "type": "float", "dynamic": False}
"""Keys and values in float8_e4m3fn, one scale a layer each."""


def write_modelopt(
    student: nn.Module,
    plan: ExportPlan,
    folder: Path,
    *,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write weights, both quantisation configurations and `sparsity.json`; the weight files."""
    state = checkpoint_tensors(student, plan, dtype=dtype)
    for layer in plan.quantized:
        parts = {key: state.pop(f"{layer.name}.{key}") for key in _local(state, layer.name)}
        renamed = to_modelopt(parts, name=layer.name)
        state.update({f"{layer.name}.{key}": value for key, value in renamed.items()})
    files = save_tensors(state, folder, shard_bytes=shard_bytes)
    write_config(student, folder, dtype=dtype, quantization=inline_config(plan))
    write_pooling(student, folder)
    (folder / "hf_quant_config.json").write_text(json.dumps(quant_config(plan), indent=2) + "\n")
    write_sparsity(plan, folder)
    return files


def _local(state: Mapping[str, Tensor], name: str) -> list[str]:
    return [k.removeprefix(f"{name}.") for k in state if k.startswith(f"{name}.")]


def to_modelopt(parts: Mapping[str, Tensor], *, name: str) -> dict[str, Tensor]:
    """One layer's compressed-tensors under ModelOpt's names and conventions.

    Raises:
        UnsupportedScheme: a scale that should be one number is several.
    """
    kept = {key: value for key, value in parts.items() if key == "bias"}
    if "weight_packed" not in parts:
        scales = {key: _scalar(parts[key], name, key) for key in ("weight_scale", "input_scale")}
        return {**kept, "weight": parts["weight"], **scales}
    scales = {
        "weight_scale": parts["weight_scale"],
        "weight_scale_2": 1.0 / _scalar(parts["weight_global_scale"], name, "weight_global_scale"),
        "input_scale": 1.0 / _scalar(parts["input_global_scale"], name, "input_global_scale"),
    }
    return {**kept, "weight": parts["weight_packed"], **scales}


def from_modelopt(found: Mapping[str, Tensor], plan: ExportPlan) -> dict[str, Tensor]:
    """A file's tensors back under compressed-tensors' names, to compare them with the student's.

    A reciprocal of a reciprocal is off by a bit; where the file holds the reciprocal of the
    trained scale, the trained scale is what comes back.
    """
    state = dict(found)
    for layer in plan.quantized:
        if f"{layer.name}.weight_scale_2" not in state:
            for key in ("weight_scale", "input_scale"):
                state[f"{layer.name}.{key}"] = state[f"{layer.name}.{key}"].reshape(1)
            continue
        state[f"{layer.name}.weight_packed"] = state.pop(f"{layer.name}.weight")
        for theirs, ours in (
            ("weight_scale_2", "weight_global_scale"),
            ("input_scale", "input_global_scale"),
        ):
            held = state.pop(f"{layer.name}.{theirs}").reshape(1)
            trained = layer.tensors[ours].cpu().float().reshape(1)
            same = torch.equal(1.0 / trained, held)
            state[f"{layer.name}.{ours}"] = trained if same else 1.0 / held
    return state


def as_compressed_tensors(
    student: nn.Module, plan: ExportPlan, source: Path, folder: Path, *, dtype: torch.dtype
) -> None:
    """The tensors of a ModelOpt folder in the layout that transformers loads."""
    save_tensors(from_modelopt(read_tensors(source), plan), folder, shard_bytes=SHARD_BYTES)
    write_config(student, folder, dtype=dtype, quantization=quantization_config(plan))


def _scalar(value: Tensor, name: str, key: str) -> Tensor:
    if value.numel() != 1:
        raise UnsupportedScheme(f"{name}: {key} has {value.numel()} values; ModelOpt holds one")
    return value.float().reshape(())


def quant_config(plan: ExportPlan) -> dict[str, Any]:
    """`hf_quant_config.json`."""
    algorithm = plan_name(plan)
    quantization: dict[str, Any] = {
        "quant_algo": algorithm,
        "kv_cache_quant_algo": "FP8" if plan.kv_cache else None,
        "exclude_modules": ignored(plan),
    }
    if algorithm == "NVFP4":
        quantization["group_size"] = 16
    return {"producer": PRODUCER, "quantization": quantization}


def inline_config(plan: ExportPlan) -> dict[str, Any]:
    """The same in `config.json`, as newer loaders look for it there."""
    quantization = quant_config(plan)["quantization"]
    return {
        "quant_method": "modelopt",
        "quant_algo": quantization["quant_algo"],
        "ignore": quantization["exclude_modules"],
        "producer": PRODUCER,
        **({"group_size": 16} if "group_size" in quantization else {}),
        # without it vLLM, which reads this file alone, keeps the cache unquantised
        **({"kv_cache_scheme": KV_CACHE} if plan.kv_cache else {}),
    }
