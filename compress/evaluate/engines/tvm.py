"""TVM: a dense checkpoint compiled by Relax for fixed shapes, not tuned.

TVM does not build these models with dynamic shapes, so inputs are padded to the next power of two
and compiled once a shape; the first call of each shape is slow. MetaSchedule is not offered: the
`apache-tvm` 0.27 of PyPI ends with a segmentation fault when it writes down what it would tune.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import BadInput, UnsupportedModel
from compress.evaluate.engines import Engine, EngineSettings
from compress.evaluate.engines.exported import (
    checkpoint_config,
    dense_model,
    refuse_settings,
    vocabulary,
    writes_text,
)
from compress.export.onnx_program import INPUTS, Logits
from compress.export.reload import quiet

SHORTEST = 16
"""Shorter inputs are padded to this, so that few shapes are compiled."""


class Tvm(Engine):
    """One compiled function a shape.

    Args:
        model: dense, in eval mode.
        vocab_size: of its tokens.
        generates: whether its answer is next tokens.
    """

    name = "tvm"

    def __init__(self, model: nn.Module, *, vocab_size: int, generates: bool) -> None:
        """Nothing is compiled yet."""
        import tvm

        self.version, self.model = tvm.__version__, model
        self.vocab_size, self.generates = vocab_size, generates
        self.limit = int(getattr(model.config, "max_position_embeddings", 1 << 30))  # type: ignore[union-attr, arg-type]
        self._compiled: dict[tuple[int, int], Any] = {}

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Logits of every position or each sequence, or the last hidden states."""
        import tvm

        rows, length = tokens_BL.shape
        padded = min(max(SHORTEST, 1 << (length - 1).bit_length()), max(self.limit, length))
        mask_BL = torch.ones_like(tokens_BL) if mask_BL is None else mask_BL.to(torch.int64)
        inputs = [nn.functional.pad(v, (0, padded - length)) for v in (tokens_BL, mask_BL)]
        run = self._function(rows, padded)
        answer = run(*(tvm.runtime.tensor(value.contiguous().numpy()) for value in inputs))
        given = torch.from_numpy((answer if hasattr(answer, "numpy") else answer[0]).numpy())
        return given[:, :length].float() if given.dim() == 3 else given.float()

    def _function(self, rows: int, length: int) -> Any:
        if (rows, length) not in self._compiled:
            self._compiled[rows, length] = _compile(self.model, rows=rows, length=length)
        return self._compiled[rows, length]


def load(path: Path, settings: EngineSettings) -> Engine:
    """A dense checkpoint folder.

    Raises:
        BadInput: there is none, or a setting has no meaning here.
    """
    refuse_settings(settings, engine="tvm", devices=("cpu",))
    if not path.is_dir():
        raise BadInput(f"{path} is no folder: engine=tvm reads dense checkpoint folders")
    model: Any = dense_model(path, engine="tvm")
    model.config.use_cache = False
    model.set_attn_implementation("eager")
    config = checkpoint_config(path)
    return Tvm(model, vocab_size=vocabulary(config, path), generates=writes_text(config))


def _compile(model: nn.Module, *, rows: int, length: int) -> Any:
    import tvm
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    example = {name: torch.ones(rows, length, dtype=torch.int64) for name in INPUTS}
    try:
        with warnings.catch_warnings(), quiet(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(Logits(model).eval(), (), kwargs=example)
            module = from_exported_program(
                program.run_decompositions(), unwrap_unit_return_tuple=True
            )
            built = tvm.compile(module, target="llvm")
    except Exception as error:  # TVM's errors have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UnsupportedModel(f"TVM does not compile {type(model).__name__}: {reason}") from error
    return relax.VirtualMachine(built, tvm.cpu())["main"]
