"""A folder for PyTorch's own runtime: a `torch.export` program that carries the trained codes.

The program needs PyTorch alone: no operator, class or package of ours is in it, and no pickle.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from compress.export.onnx_program import settle_weights
from compress.export.plan import ExportPlan
from compress.export.program import exported_program
from compress.export.pt2_layers import put_codes
from compress.export.sparsity import write_sparsity
from compress.export.vllm import write_config
from compress.transforms import InputTransform

PROGRAM_FILE = "model.pt2"
PREFIX = "model."
"""Before every name in the program: the exported module holds the model under it."""


def write_pt2(
    student: nn.Module, plan: ExportPlan, folder: Path, *, dtype: torch.dtype
) -> list[Path]:
    """Write `model.pt2`, `config.json` and `sparsity.json`; the weight files.

    Args:
        student: a Hugging Face model with its transforms attached; left as it was.
        plan: what is quantised; the gate has let it through.
        folder: exists, is empty.
        dtype: of what is not quantised, and what the program computes in.

    Raises:
        UnsupportedModel: PyTorch cannot export the model.
    """
    program = coded_program(student, plan, dtype=dtype)
    torch.export.save(program, folder / PROGRAM_FILE)
    write_config(student, folder, dtype=dtype, quantization=None)
    write_sparsity(plan, folder)
    return [folder / PROGRAM_FILE]


def coded_program(student: nn.Module, plan: ExportPlan, *, dtype: torch.dtype) -> ExportedProgram:
    """The student as a program whose quantised layers are integer codes and scales.

    Raises:
        UnsupportedModel: PyTorch cannot export it.
    """
    copied = _uncached(student)
    put_codes(copied, student, plan, dtype)
    settle_weights(copied)
    program = exported_program(in_dtype(copied, dtype))
    strip(program)
    return program


def strip(program: ExportedProgram) -> None:
    """Take out, in place, what no run needs: example inputs, guards, paths of this machine.

    Guards are Python text that a loader executes, and example inputs a pickle.
    """
    for node in program.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    program._example_inputs = None
    program._guards_code = []


def trained_reference(student: nn.Module, *, dtype: torch.dtype) -> nn.Module:
    """The student in the program's dtype: the used weights, and its own input quantisers."""
    copied = _uncached(student)
    settle_weights(copied)
    return in_dtype(copied, dtype).eval()


def _uncached(student: nn.Module) -> Any:
    copied: Any = copy.deepcopy(student).cpu()
    if hasattr(copied, "config"):
        copied.config.use_cache = False
    return copied


@torch.no_grad()
def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Every parameter in `dtype`, in place; codes, scales and buffers such as RoPE's stay."""
    exact = {
        id(parameter)
        for quantizer in model.modules() if isinstance(quantizer, InputTransform)
        for parameter in quantizer.parameters()
    }  # fmt: skip
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if id(parameter) not in exact:
            parameter.data = parameter.data.to(dtype)
    return model


def held_tensors(
    program: ExportedProgram, plan: ExportPlan, student: nn.Module
) -> dict[str, Tensor]:
    """A program's tensors under the names of the plain model, as a checkpoint would hold them.

    Names that share another's tensor are left out, where the program shares it too.
    """
    state = {key.removeprefix(PREFIX): value for key, value in program.state_dict.items()}
    for layer in plan.quantized:
        if f"{layer.name}.weight_packed" in state:
            state[f"{layer.name}.weight_shape"] = torch.tensor(layer.shape)
    tied = set(getattr(student, "_tied_weights_keys", None) or ())
    owners = {value.data_ptr() for key, value in state.items() if key not in tied}
    return {k: v for k, v in state.items() if k not in tied or v.data_ptr() not in owners}
