"""onnxruntime: an exported ONNX file, or a dense checkpoint exported on the spot."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from compress.errors import BadInput
from compress.evaluate.engines import Engine, EngineSettings, OnToken
from compress.evaluate.engines.exported import (
    checkpoint_config,
    dense_model,
    refuse_settings,
    vocabulary,
    writes_text,
)
from compress.export.onnx_program import INPUTS
from compress.export.plan import collect_plan
from compress.export.tensorrt import ONNX_FILE, write_dense

PAST = "past_key_values."
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def products_saturate(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the kernels may add pairs of int8 products in 16 bits: x86 without VNNI does.

    True where the processor cannot be asked; others than x86 ignore the setting.
    """
    return not cpuinfo.is_file() or "vnni" not in cpuinfo.read_text()


class OnnxRuntime(Engine):
    """A session with every rewrite on; it keeps keys and values where the file does."""

    name = "onnxruntime"
    version = onnxruntime.__version__

    def __init__(
        self, file: Path, *, vocab_size: int, generates: bool, threads: int, device: str
    ) -> None:
        """Opens the file.

        Raises:
            BadInput: onnxruntime cannot read it, or it has other inputs.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # where it changes nothing it still takes 1.4x the time
        if products_saturate():
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self.session = onnxruntime.InferenceSession(
                str(file), options, providers=[PROVIDERS[device]]
            )
        except Exception as error:  # its exceptions have no common base but this
            reason = str(error).splitlines()[0]
            raise BadInput(f"{file} does not open in onnxruntime: {reason}") from error
        inputs = [value.name for value in self.session.get_inputs()]
        self.past = [value for value in self.session.get_inputs() if value.name.startswith(PAST)]
        others = sorted(set(inputs) - {value.name for value in self.past})
        if others != sorted(INPUTS):
            raise BadInput(f"{file} has the inputs {', '.join(inputs)}, not {', '.join(INPUTS)}")
        self.vocab_size, self.generates, self.cached = vocab_size, generates, bool(self.past)

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Logits of every position or each sequence, or the last hidden states."""
        mask_BL = torch.ones_like(tokens_BL) if mask_BL is None else mask_BL
        logits, *_ = self._run(tokens_BL, mask_BL, self._empty(tokens_BL.shape[0]))
        return torch.from_numpy(logits).float()

    def generate(self, tokens_BL: Tensor, *, new_tokens: int, on_token: OnToken) -> Tensor:
        """Greedy continuations; with a cache in the file, one token a pass over it."""
        if not self.cached:
            return super().generate(tokens_BL, new_tokens=new_tokens, on_token=on_token)
        entering, written, past = tokens_BL, [], self._empty(tokens_BL.shape[0])
        for number in range(new_tokens):
            mask_BT = torch.ones(tokens_BL.shape[0], tokens_BL.shape[1] + number, dtype=torch.int64)
            logits, *past = self._run(entering, mask_BT, past)
            entering = torch.from_numpy(logits[:, -1:].argmax(-1))
            written.append(entering)
            on_token()
        return torch.cat(written, dim=1)

    def _run(self, tokens_BL: Tensor, mask_BT: Tensor, past: list[Any]) -> list[Any]:
        feed = dict(zip(INPUTS, (tokens_BL.numpy(), mask_BT.to(torch.int64).numpy()), strict=True))
        held = {value.name: given for value, given in zip(self.past, past, strict=True)}
        answer: list[Any] = self.session.run(None, {**feed, **held})
        return answer

    def _empty(self, batch: int) -> list[Any]:
        """A past of no tokens."""
        shapes = [(batch, value.shape[1], 0, value.shape[3]) for value in self.past]
        return [np.zeros(shape, np.float32) for shape in shapes]


def load(path: Path, settings: EngineSettings) -> Engine:
    """An `.onnx` file, a folder that holds one, or a dense checkpoint folder.

    The option `cache` exports a dense decoder with its key-value cache, and asks a file for one.

    Raises:
        BadInput: there is none, it cannot be read, or a setting has no meaning here.
    """
    usable = tuple(d for d, p in PROVIDERS.items() if p in onnxruntime.get_available_providers())
    refuse_settings(settings, engine="onnxruntime", devices=usable, known=("cache",))
    wanted = bool(settings.options.get("cache", False))
    if not path.exists():
        raise BadInput(f"{path}: there is no such file or folder")
    file = onnx_file(path)
    config = checkpoint_config(path)
    opened: dict[str, Any] = {
        "vocab_size": vocabulary(config, path), "generates": writes_text(config),
        "threads": settings.threads, "device": settings.device,
    }  # fmt: skip
    if file is not None:
        engine = OnnxRuntime(file, **opened)
        if wanted and not engine.cached:
            raise BadInput(
                f"options={{cache: true}}, but {file} has no key-value cache: export it with "
                "cache=true"
            )
        return engine
    model = dense_model(path, engine="onnxruntime")
    with tempfile.TemporaryDirectory() as place:
        write_dense(model, collect_plan(model), Path(place) / ONNX_FILE, cache=wanted)
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
