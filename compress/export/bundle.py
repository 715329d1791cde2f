"""A bundle: a compared export with its card and everything to deploy it, in one folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from compress.errors import UnsupportedScheme
from compress.export.card import CardFacts
from compress.export.deploy import DeploySettings, write_deploy
from compress.export.write import ExportResult, export
from compress.models import config_of

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
        UnsupportedScheme: the target has no server, or cannot serve the plan.
        ExportMismatch: the file is not what was trained; `path` is as it was before.
        BadInput: `path` cannot be written.
    """
    if target in ("transformers", "pt2"):
        raise UnsupportedScheme(f"bundle=true: {target} has no server; use target=vllm")
    filled = replace(deploy, quantization=deploy.quantization or QUANTIZATION.get(target))
    facts = served_outputs(student)

    def add(folder: Path) -> None:
        write_deploy(folder, filled, target=target, facts=facts)

    told = replace(card or CardFacts(), deployed=True)
    return export(student, target=target, path=path, card=told, finish=add, **settings)


def served_outputs(student: nn.Module) -> dict[str, Any]:
    """Whether a pass gives logits at every position, and how many each."""
    classifies = type(student).__name__.endswith("ForSequenceClassification")
    config = config_of(student)
    outputs = int(config.num_labels if classifies else config.vocab_size)
    return {"generates": not classifies, "outputs": outputs}
