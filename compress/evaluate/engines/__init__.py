"""Runtimes that a benchmark loads a model in: what all have in common, and which there are.

Each is a module of this package with `load(path, settings) -> Engine`; it is imported by name, so
that none of the others need be installed. `vllm` runs in an environment of its own (`vllm_host`).

Legend: B sequences, L positions, V vocabulary, C classes, H hidden.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.errors import BadInput, CompressError, did_you_mean

OnToken = Callable[[], None]
"""Called when every sequence of the batch has its next token: the moment is what is measured."""

REQUIRED: Mapping[str, tuple[str, str]] = {
    "transformers": ("transformers", "pip install transformers"),
    "onnxruntime": ("onnxruntime", "pip install 'compress-lm[onnx]'"),
    "eager": ("torch", "pip install torch"),
    "inductor": ("torch", "pip install torch"),
    "tvm": ("tvm", "pip install apache-tvm"),
}
"""Engine -> the module that must be there, and the command that installs it."""


class EngineMissing(CompressError):
    """The runtime is not installed here."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How a model is loaded.

    Args:
        threads: of the runtime's own pool; 1 gives the steadiest ratios.
        dtype: `float32`, `bfloat16` or `float16`, of what is not quantised; None takes the
            checkpoint's own.
        device: `cpu` or `cuda`.
        options: further words for one engine, which refuses those it does not know.
    """

    threads: int = 1
    dtype: str | None = None
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)


class Engine(ABC):
    """A model in one runtime.

    Attributes:
        name: the engine's word on the command line.
        version: of the runtime.
        vocab_size: token ids are drawn below it.
        generates: True for causal language models, False where a pass is the whole answer.
        cached: whether `generate` keeps keys and values, or computes the prefix anew.
    """

    name: str
    version: str
    vocab_size: int
    generates: bool
    cached: bool = False

    @abstractmethod
    def forward(self, tokens_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Logits of every position (B, L, V) or each sequence (B, C), in fp32 on the CPU.

        Of a model without a head: its last hidden states (B, L, H).

        `mask_BL` is 1 at tokens and 0 at padding; None where there is no padding.
        """

    def generate(self, tokens_BL: Tensor, *, new_tokens: int, on_token: OnToken) -> Tensor:
        """Greedy continuations (B, new_tokens).

        Here the whole prefix is computed anew for each token; engines with a cache override it.
        """
        written = tokens_BL
        for _ in range(new_tokens):
            next_B1 = self.forward(written)[:, -1].argmax(-1, keepdim=True)
            written = torch.cat([written, next_B1], dim=1)
            on_token()
        return written[:, tokens_BL.shape[1] :]

    def close(self) -> None:
        """Give back what the runtime holds."""
        return None


def require(name: str) -> None:
    """Refuse an engine that is unknown or not installed; imports nothing.

    Raises:
        BadInput: there is no engine of that name.
        EngineMissing: with the command that installs it.
    """
    if name not in REQUIRED:
        hint = did_you_mean(name, list(REQUIRED))
        raise BadInput(f"engine={name} is unknown.{hint} There are: {', '.join(REQUIRED)}")
    module, command = REQUIRED[name]
    if find_spec(module) is None:
        raise EngineMissing(f"engine={name} is not installed: {command}")


def load_engine(name: str, path: str | Path, settings: EngineSettings) -> Engine:
    """Open `path` in the engine `name`.

    Args:
        name: one of `REQUIRED`.
        path: what the engine reads: a checkpoint folder, or an ONNX or `.pt2` file or its folder.
        settings: threads, dtype, device.

    Raises:
        BadInput: the engine is unknown, or cannot read what lies at `path`.
        EngineMissing: the engine is not installed.
    """
    require(name)
    module = importlib.import_module(f"{__name__}.{name}")
    engine: Engine = module.load(Path(path), settings)
    return engine
