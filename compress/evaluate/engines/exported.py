"""What the engines that compile a graph share: which checkpoints they take, and how to read one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from compress.errors import BadInput
from compress.evaluate.engines import EngineSettings
from compress.evaluate.models import load_checkpoint, task_of


def dense_model(path: Path, *, engine: str) -> nn.Module:
    """A dense Hugging Face checkpoint in fp32: causal, a sequence classifier, or without a head.

    Raises:
        BadInput: there is none at `path`, it is quantised, or it does not load whole.
    """
    config = checkpoint_config(path)
    if path.is_dir() and any(path.glob("*.onnx")) and not any(path.glob("*.safetensors")):
        raise BadInput(
            f"{path} holds an ONNX graph, which {engine} does not read: engine=onnxruntime runs it"
        )
    if "quantization_config" in config:
        target = "pt2" if engine in ("inductor", "eager") else "tensorrt"
        raise BadInput(
            f"{path} is quantised in a format that {engine} does not read: export its run with "
            f"target={target} and give that folder"
        )
    return load_checkpoint(path, task=task_of(config))


def checkpoint_config(path: Path) -> dict[str, Any]:
    """`config.json` in, or beside, `path`.

    Raises:
        BadInput: there is none, or it is damaged.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        raise BadInput(f"{path}: nothing to load: {file} does not exist")
    try:
        config: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise BadInput(f"{file} is damaged: {error}") from error
    return config


def writes_text(config: dict[str, Any]) -> bool:
    """Whether the model continues texts: neither classes nor hidden states are next tokens."""
    return task_of(config) == "causal_lm"


def vocabulary(config: Mapping[str, Any], path: Path) -> int:
    """The number of tokens that `config.json` states.

    Raises:
        BadInput: it states none.
    """
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if not size:
        raise BadInput(f"{path}: its config.json has no vocab_size")
    return int(size)


def refuse_settings(
    settings: EngineSettings, *, engine: str, devices: tuple[str, ...],
    known: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Refuse a device, dtype or option that an engine would pass over in silence.

    Raises:
        BadInput: names what, and what there is.
    """
    if settings.device not in devices:
        raise BadInput(
            f"device={settings.device}: engine={engine} runs on {', '.join(devices)} here"
        )
    if settings.dtype not in (None, "float32"):
        raise BadInput(f"dtype={settings.dtype}: engine={engine} computes the rest in float32")
    unknown = sorted(set(settings.options) - set(known))
    if unknown:
        there = f"; there are: {', '.join(known)}" if known else ""
        raise BadInput(f"engine={engine} has no option {', '.join(unknown)}{there}")
