"""PyTorch without a compiler: an exported program (`target=pt2`), or a dense checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.errors import BadInput
from compress.evaluate.engines import Engine, EngineSettings
from compress.evaluate.engines.exported import (
    checkpoint_config,
    dense_model,
    refuse_settings,
    vocabulary,
    writes_text,
)
from compress.export.onnx_program import Logits
from compress.export.pt2 import PROGRAM_FILE
from compress.export.pt2_archive import open_program


class Eager(Engine):
    """Operators one after another; no key-value cache, as in the program."""

    name = "eager"
    version = torch.__version__

    def __init__(self, run: Callable[..., Tensor], *, vocab_size: int, generates: bool) -> None:
        """`run` takes `input_ids` and `attention_mask`."""
        self.run, self.vocab_size, self.generates = run, vocab_size, generates

    @torch.inference_mode()
    def forward(self, tokens_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Logits of every position or each sequence, or the last hidden states."""
        mask_BL = torch.ones_like(tokens_BL) if mask_BL is None else mask_BL
        return self.run(input_ids=tokens_BL, attention_mask=mask_BL.to(torch.int64)).float()


def load(path: Path, settings: EngineSettings) -> Engine:
    """A `.pt2` program with a `config.json` beside, its folder, or a dense checkpoint folder.

    Raises:
        BadInput: there is none, it cannot be read, or a setting has no meaning here.
    """
    refuse_settings(settings, engine="eager", devices=("cpu",))
    if not path.exists():
        raise BadInput(f"{path}: there is no such file or folder")
    torch.set_num_threads(settings.threads)
    config = checkpoint_config(path)
    facts: Any = {"vocab_size": vocabulary(config, path), "generates": writes_text(config)}
    file = path if path.is_file() else path / PROGRAM_FILE
    if file.is_file():
        return Eager(open_program(file).module(), **facts)
    return Eager(Logits(dense_model(path, engine="eager")), **facts)
