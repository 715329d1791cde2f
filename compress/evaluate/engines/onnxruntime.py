"""onnxruntime: an exported ONNX file, or a dense checkpoint exported on the spot."""

import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from compress.errors import BadInput
from compress.evaluate.engines import Engine, EngineSettings
from compress.evaluate.engines.exported import (
    checkpoint_config,
    dense_model,
    refuse_settings,
    vocabulary,
)
from compress.export.onnx_program import INPUTS
from compress.export.plan import collect_plan
from compress.export.tensorrt import ONNX_FILE, write_dense

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime(Engine):
    """A session with every rewrite of onnxruntime on; no key-value cache."""

    name = "onnxruntime"
    version = onnxruntime.__version__

    def __init__(self, file: Path, *, vocab_size: int, threads: int, device: str) -> None:
        """Opens the file.

        Raises:
            BadInput: onnxruntime cannot read it, or it has other inputs.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(file), options, providers=[PROVIDERS[device]]
            )
        except Exception as error:  # its exceptions have no common base but this
            reason = str(error).splitlines()[0]
            raise BadInput(f"{file} does not open in onnxruntime: {reason}") from error
        inputs = [value.name for value in self.session.get_inputs()]
        if sorted(inputs) != sorted(INPUTS):
            raise BadInput(f"{file} has the inputs {', '.join(inputs)}, not {', '.join(INPUTS)}")
        self.vocab_size = vocab_size
        self.generates = len(self.session.get_outputs()[0].shape) == 3

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Logits of every position, or of each sequence."""
        mask_BL = torch.ones_like(tokens_BL) if mask_BL is None else mask_BL
        values = (tokens_BL.numpy(), mask_BL.to(torch.int64).numpy())
        (logits,) = self.session.run(None, dict(zip(INPUTS, values, strict=True)))
        return torch.from_numpy(logits).float()


def load(path: Path, settings: EngineSettings) -> Engine:
    """An `.onnx` file, a folder that holds one, or a dense checkpoint folder.

    Raises:
        BadInput: there is none, it cannot be read, or a setting has no meaning here.
    """
    usable = tuple(d for d, p in PROVIDERS.items() if p in onnxruntime.get_available_providers())
    refuse_settings(settings, engine="onnxruntime", devices=usable)
    if not path.exists():
        raise BadInput(f"{path}: there is no such file or folder")
    file = onnx_file(path)
    config = checkpoint_config(path)
    opened: dict[str, Any] = {
        "vocab_size": vocabulary(config, path), "threads": settings.threads,
        "device": settings.device,
    }  # fmt: skip
    if file is not None:
        return OnnxRuntime(file, **opened)
    model = dense_model(path, engine="onnxruntime")
    with tempfile.TemporaryDirectory() as place:
        write_dense(model, collect_plan(model), Path(place) / ONNX_FILE)
        return OnnxRuntime(Path(place) / ONNX_FILE, **opened)


def onnx_file(path: Path) -> Path | None:
    """The ONNX file that a path means; None for a checkpoint folder.

    Raises:
        BadInput: it is a file of another kind, or a folder with several.
    """
    if path.is_file():
        if path.suffix != ".onnx":
            raise BadInput(f"{path} is no .onnx file")
        return path
    found = sorted(path.glob("*.onnx"))
    if len(found) > 1:
        listed = ", ".join(file.name for file in found)
        raise BadInput(f"{path} holds several ONNX files ({listed}): name one")
    return found[0] if found else None
