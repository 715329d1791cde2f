"""A compiled package by `torch.export` and AOTInductor: TorchScript's successor, no Python needed.

The model runs with the weights it was trained to (masked, quantised). Inductor has fast kernels for
fp32 and bf16, so codes are multiplied out while compiling: a quantised model has the accuracy, not
the speed, of its scheme.
"""

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from compress.errors import BadInput, UnsupportedModel
from compress.export.onnx_program import settle_weights
from compress.export.program import example_tokens, exported_program
from compress.export.reload import quiet

PACKAGE_FILE = "model.pt2"
FOLDED = {"freezing": True}
"""Inductor's word for what is computed once, while compiling: here codes times scales."""

Compiled = Callable[[Tensor, Tensor], Tensor]


def compile_package(
    student: nn.Module, path: Path, *, longest: int | None = None, threads: int | None = None
) -> Path:
    """Compile a model ahead of time to one `.pt2` file, batch and sequence dynamic.

    Args:
        student: a Hugging Face model; left as it was. Static and dynamic input quantisers stay.
        path: of the package; its name ends in `.pt2`.
        longest: sequence the package accepts; None takes the model's own limit.
        threads: to compile for; None as many as PyTorch uses now.

    Raises:
        BadInput: no C++ compiler, or `path` has another ending.
        UnsupportedModel: the model cannot be exported; says where.
    """
    _require(path)
    program = exported_program(_used_weights(student), longest=longest)
    return compile_program(program, path, threads=threads)


def compile_program(program: ExportedProgram, path: Path, *, threads: int | None = None) -> Path:
    """Compile a program of `tokens, mask` to one `.pt2` file; see `compile_package`.

    Raises:
        BadInput: no C++ compiler, or `path` has another ending.
        UnsupportedModel: Inductor does not compile it; says where.
    """
    _require(path)
    program._example_inputs = ((), example_tokens())  # files hold none: it would be a pickle
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with warnings.catch_warnings(), quiet(), torch.no_grad():
            warnings.simplefilter("ignore")
            made = torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=FOLDED
            )
    except Exception as error:  # the compiler's own errors have no common base
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedModel(f"the program does not compile: {reason}") from error
    finally:
        torch.set_num_threads(before)
    return Path(made)


def open_package(path: Path) -> Compiled:
    """A compiled package as a function of tokens and mask.

    Raises:
        BadInput: it does not load here (another machine's, another PyTorch's, damaged).
    """
    try:
        with quiet():
            runner: Any = torch._inductor.aoti_load_package(str(path))
    except Exception as error:  # whatever the archive's reader or the linker raises
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{path} does not load: {reason}; compile it on this machine") from error

    def run(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        answer: Tensor = runner(input_ids=input_ids, attention_mask=attention_mask)
        return answer

    return run


def _require(path: Path) -> None:
    if path.suffix != ".pt2":
        raise BadInput(f"{path}: a compiled package ends in .pt2")
    require_compiler()


def require_compiler() -> None:
    """Refuses where no C++ compiler is found.

    Raises:
        BadInput: with the install command.
    """
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        raise BadInput("engine=inductor needs a C++ compiler: apt install g++")


@torch.no_grad()
def _used_weights(student: nn.Module) -> Any:
    copied: Any = copy.deepcopy(student).float().cpu()
    if hasattr(copied, "config"):
        copied.config.use_cache = False
    settle_weights(copied)
    return copied
