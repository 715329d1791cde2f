"""A Hugging Face folder in compressed-tensors format: what vLLM and transformers load."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.export.checkpoint import SHARD_BYTES, checkpoint_tensors, save_tensors
from compress.export.plan import ExportPlan
from compress.export.pooling import write_pooling
from compress.export.schemes import quantization_config
from compress.export.sparsity import write_sparsity


def write_compressed_tensors(
    student: nn.Module,
    plan: ExportPlan,
    folder: Path,
    *,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write weights, `config.json`, generation config and `sparsity.json`; the weight files.

    Without any transform this is a plain dense checkpoint. `sparsity_config` is never written.
    A model without a head also gets the files that say how it pools, see `pooling`.
    """
    files = save_tensors(
        checkpoint_tensors(student, plan, dtype=dtype), folder, shard_bytes=shard_bytes
    )
    write_config(student, folder, dtype=dtype, quantization=quantization_config(plan))
    write_pooling(student, folder)
    write_sparsity(plan, folder)
    return files


def write_config(
    student: nn.Module, folder: Path, *, dtype: torch.dtype, quantization: dict[str, Any] | None
) -> None:
    """`config.json` (with `quantization_config` where given) and `generation_config.json`."""
    config: Any = copy.deepcopy(student.config)
    config.architectures = [type(student).__name__]
    config.dtype = dtype
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(str(folder))
    if quantization is not None:
        path = folder / "config.json"
        written = json.loads(path.read_text())
        written["quantization_config"] = quantization
        path.write_text(json.dumps(written, indent=2) + "\n")
    generation: Any = getattr(student, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(str(folder))
