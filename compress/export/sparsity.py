"""`sparsity.json`: which weights are zero, by layer, and where that makes a model faster.

Sparse weights ship as dense tensors with zeros; nothing in `config.json` speaks of them.
"""

import json
from pathlib import Path
from typing import Any

from compress.export.plan import ExportPlan

SCHEMA = 1


def sparsity_manifest(plan: ExportPlan) -> dict[str, Any] | None:
    """Pattern and density of every masked layer; None where there is no mask."""
    if not plan.sparse:
        return None
    layers: dict[str, dict[str, Any]] = {
        layer.name: {
            "pattern": layer.pattern,
            "density": layer.density,
            "zeros": round((1.0 - layer.density) * _count(layer.shape)),
            "shape": list(layer.shape),
        }
        for layer in plan.sparse
    }
    total = sum(_count(layer.shape) for layer in plan.sparse)
    zeros = sum(entry["zeros"] for entry in layers.values())
    return {
        "schema": SCHEMA,
        "storage": "dense tensors with zeros",
        "pattern": " and ".join(sorted({str(layer.pattern) for layer in plan.sparse})),
        "density": 1.0 - zeros / total,
        "zeros": zeros,
        "faster_in": faster_in(plan),
        "layers": layers,
    }


def write_sparsity(plan: ExportPlan, folder: Path) -> None:
    """`sparsity.json`, where there are masks."""
    manifest = sparsity_manifest(plan)
    if manifest is not None:
        (folder / "sparsity.json").write_text(json.dumps(manifest, indent=2) + "\n")


def faster_in(plan: ExportPlan) -> list[str]:
    """Runtimes that turn these zeros into speed."""
    patterns = {layer.pattern for layer in plan.sparse}
    return ["tensorrt"] if patterns == {"2:4"} else []


def speed_note(plan: ExportPlan) -> str:
    """One honest line for people: where the zeros help and where not."""
    if not plan.sparse:
        return "No weights are masked."
    if faster_in(plan):
        return (
            "2:4 sparsity: faster in TensorRT (through a dense ONNX with zeros); "
            "vLLM and transformers run it at dense speed."
        )
    return (
        "Unstructured zeros: they make the file compress better (zip, zstd), but no runtime, "
        "vLLM and transformers included, runs it faster than the dense model."
    )


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
