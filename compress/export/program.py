"""A model as a `torch.export` program: tokens and mask in, logits out; both axes dynamic."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from compress.errors import UnsupportedModel
from compress.export.onnx_program import INPUTS, Logits
from compress.export.reload import quiet
from compress.models import config_of

DROPOUTS = ("dropout", "dropout_", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def exported_program(model: nn.Module, *, longest: int | None = None) -> ExportedProgram:
    """The graph of a Hugging Face model in eval mode, its dropout gone.

    Args:
        model: nothing is cached; every transform that it still has is traced.
        longest: sequence that the program accepts; None takes the model's own limit.

    Raises:
        UnsupportedModel: PyTorch cannot export it; says where.
    """
    limit = longest or int(getattr(config_of(model), "max_position_embeddings", 2048))
    sizes = {0: Dim("batch"), 1: Dim("sequence", max=limit)}
    try:
        with warnings.catch_warnings(), quiet(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                Logits(model).eval(), (), kwargs=example_tokens(),
                dynamic_shapes=dict.fromkeys(INPUTS, sizes),
            )  # fmt: skip
    except Exception as error:  # the exporter's own errors have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModel(f"{type(model).__name__} does not export: {reason}") from error
    remove_dropout(program)
    return program


def example_tokens() -> dict[str, Tensor]:
    """Inputs to trace or compile with; two tensors, since one object would become one input."""
    return {name: torch.ones(2, 8, dtype=torch.int64) for name in INPUTS}


def remove_dropout(program: ExportedProgram) -> None:
    """Take out operators that do nothing outside training, in place."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        target: Any = node.target
        if getattr(target, "namespace", "") == "aten" and (
            target._schema.name.removeprefix("aten::") in DROPOUTS and node.args[2] is False
        ):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            graph.erase_node(node)
    program.graph_module.recompile()
