"""Inductor: a dense checkpoint compiled ahead of time (AOTInductor), or a package made before."""

import tempfile
from pathlib import Path

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
from compress.export.inductor import PACKAGE_FILE, Compiled, compile_package, open_package


class Inductor(Engine):
    """A compiled package; no key-value cache."""

    name = "inductor"
    version = torch.__version__

    def __init__(self, run: Compiled, *, vocab_size: int) -> None:
        """`run` is an opened package."""
        self.run, self.vocab_size = run, vocab_size
        probe = torch.zeros(2, 3, dtype=torch.int64)
        self.generates = self.forward(probe).dim() == 3

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Logits of every position, or of each sequence."""
        mask_BL = torch.ones_like(tokens_BL) if mask_BL is None else mask_BL
        with torch.inference_mode():
            return self.run(tokens_BL, mask_BL.to(torch.int64)).float()


def load(path: Path, settings: EngineSettings) -> Engine:
    """A `.pt2` package with a `config.json` beside, or a dense checkpoint folder.

    Raises:
        BadInput: there is none, it cannot be read, or a setting has no meaning here.
        UnsupportedModel: the model does not compile.
    """
    refuse_settings(settings, engine="inductor", devices=("cpu",))
    if not path.exists():
        raise BadInput(f"{path}: there is no such file or folder")
    torch.set_num_threads(settings.threads)
    vocab_size = vocabulary(checkpoint_config(path), path)
    file = path if path.is_file() else path / PACKAGE_FILE
    if file.is_file():
        return Inductor(open_package(file), vocab_size=vocab_size)
    model = dense_model(path, engine="inductor")
    with tempfile.TemporaryDirectory() as place:
        made = compile_package(model, Path(place) / PACKAGE_FILE, threads=settings.threads)
        return Inductor(open_package(made), vocab_size=vocab_size)
