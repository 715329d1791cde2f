"""A bundle: a compared export with its card and everything to deploy it, in one folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from compress.errors import UnsupportedScheme
from compress.export.card import CardFacts
from compress.export.deploy import RESOURCES, DeploySettings, write_deploy
from compress.export.tensorrt import BATCH, ONNX_FILE
from compress.export.write import ExportResult, export

QUANTIZATION = {"modelopt": "modelopt"}
"""What `vllm serve` must be told; other formats are found in the checkpoint's configuration."""


def bundle(
    student: nn.Module,
    *,
    target: str,
    path: str | Path,
    deploy: DeploySettings,
    card: CardFacts | None = None,
    **settings: Any,
) -> ExportResult:
    """Export with a card and `deploy/`; the folder appears whole or not at all.

    Args:
        student: a Hugging Face model with its transforms attached; left as it was.
        target: `vllm`, `modelopt` or `tensorrt`; there is no server for `transformers` and `pt2`.
        path: the final folder.
        deploy: what the deployment files are filled with.
        card: what the model card should say.
        settings: see `export`.

    Raises:
        UnsupportedScheme: the target has no server, or none on these devices, or cannot serve the
            plan.
        ExportMismatch: the file is not what was trained; `path` is as it was before.
        BadInput: `path` cannot be written.
    """
    if target in ("transformers", "pt2"):
        raise UnsupportedScheme(f"bundle=true: {target} has no server; use target=vllm")
    if target == "tensorrt" and deploy.device != RESOURCES["NVIDIA"]:
        raise UnsupportedScheme(
            f"bundle=true: TensorRT runs on NVIDIA alone, and the server is planned for "
            f"{deploy.device}; use target=vllm"
        )
    filled = replace(deploy, quantization=deploy.quantization or QUANTIZATION.get(target))

    def add(folder: Path) -> None:
        facts: dict[str, Any] = {}
        if target == "tensorrt":
            facts = {"batch": settings.get("batch") or BATCH, **engine_facts(folder / ONNX_FILE)}
        write_deploy(folder, filled, target=target, facts=facts)

    told = replace(card or CardFacts(), deployed=True)
    return export(student, target=target, path=path, card=told, finish=add, **settings)


def engine_facts(file: Path) -> dict[str, Any]:
    """The output of an ONNX file without its batch, for Triton: -1 where an axis is dynamic."""
    import onnx

    output = onnx.load(file, load_external_data=False).graph.output[0]
    _, *sizes = output.type.tensor_type.shape.dim
    return {"output": output.name, "dims": [size.dim_value or -1 for size in sizes]}
