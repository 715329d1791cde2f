"""Inductor: an exported program or a dense checkpoint, compiled ahead of time (AOTInductor).

A package that was compiled before is native code: it runs where `trust_package` says so.
"""

import tempfile
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
from compress.export.inductor import (
    PACKAGE_FILE,
    Compiled,
    compile_package,
    compile_program,
    open_package,
)
from compress.export.pt2_archive import is_compiled, open_program


class Inductor(Engine):
    """A compiled package; no key-value cache."""

    name = "inductor"
    version = torch.__version__

    def __init__(self, run: Compiled, *, vocab_size: int, generates: bool) -> None:
        """`run` is an opened package."""
        self.run, self.vocab_size, self.generates = run, vocab_size, generates

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Logits of every position or each sequence, or the last hidden states."""
        mask_BL = torch.ones_like(tokens_BL) if mask_BL is None else mask_BL
        with torch.inference_mode():
            return self.run(tokens_BL, mask_BL.to(torch.int64)).float()


def load(path: Path, settings: EngineSettings) -> Engine:
    """A `.pt2` program or package with a `config.json` beside, or a dense checkpoint folder.

    The option `trust_package` lets a compiled package in: it is code of whoever made it.

    Raises:
        BadInput: there is none, it cannot be read, or a setting has no meaning here.
        UnsupportedModel: the model does not compile.
    """
    refuse_settings(settings, engine="inductor", devices=("cpu",), known=("trust_package",))
    if not path.exists():
        raise BadInput(f"{path}: there is no such file or folder")
    torch.set_num_threads(settings.threads)
    config = checkpoint_config(path)
    facts: Any = {"vocab_size": vocabulary(config, path), "generates": writes_text(config)}
    file = path if path.is_file() else path / PACKAGE_FILE
    if file.is_file() and settings.options.get("trust_package") is True and is_compiled(file):
        return Inductor(open_package(file), **facts)
    with tempfile.TemporaryDirectory() as place:
        package = Path(place) / PACKAGE_FILE
        if file.is_file():
            made = compile_program(open_program(file), package, threads=settings.threads)
        else:
            model = dense_model(path, engine="inductor")
            made = compile_package(model, package, threads=settings.threads)
        return Inductor(open_package(made), **facts)
