"""From a student to an ONNX graph in which each quantised layer is one `compress::Linear` node.

PyTorch's exporter refuses fake-quantise operators, merges equal initialisers and renames the rest.
A node that carries its layer's number survives all that; `onnx_layers` then writes the layer out.
"""

import contextlib
import copy
import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import BadInput, UnsupportedModel
from compress.export.onnx_cache import CachedLogits, CacheShape
from compress.export.plan import ExportPlan
from compress.export.reload import quiet
from compress.transforms import INPUT_QUANTIZER, transforms_of

DOMAIN = "compress"
PRODUCT_OP, TABLE_OP = "Linear", "Table"
OPSET = 21
"""The first opset with INT4 and block-wise scales; TensorRT's parser reads up to 25."""

INPUTS = ("input_ids", "attention_mask")


def require_onnx() -> None:
    """Refuses with the install command where an ONNX package is missing.

    Raises:
        BadInput: names the packages.
    """
    needed = {"onnx": "onnx", "onnxscript": "onnxscript", "onnx_ir": "onnx-ir"}
    absent = [package for module, package in needed.items() if not _importable(module)]
    if absent:
        raise BadInput(
            f"target=tensorrt needs {', '.join(absent)}: pip install 'compress-lm[onnx]'"
        )


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


@torch.library.custom_op(f"{DOMAIN}::linear", mutates_args=())
def _linear(values: Tensor, out_features: int, number: int) -> Tensor:
    """Stands for layer `number` of the plan; only ever exported."""
    return values.new_zeros(*values.shape[:-1], out_features)


@_linear.register_fake
def _linear_shape(values: Tensor, out_features: int, number: int) -> Tensor:
    return values.new_empty(*values.shape[:-1], out_features)


@torch.library.custom_op(f"{DOMAIN}::table", mutates_args=())
def _table(tokens: Tensor, width: int, number: int) -> Tensor:
    """Stands for embedding `number` of the plan; only ever exported."""
    return torch.zeros(*tokens.shape, width, device=tokens.device)


@_table.register_fake
def _table_shape(tokens: Tensor, width: int, number: int) -> Tensor:
    return tokens.new_empty(*tokens.shape, width, dtype=torch.float32)


class _TablePlaceholder(nn.Module):
    """Takes an embedding's place, its table left out."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.width, self.number = width, number

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = torch.ops.compress.table(tokens, self.width, self.number)
        return out


class _Placeholder(nn.Module):
    """Takes a linear layer's place, weight and bias left out."""

    def __init__(self, out_features: int, number: int) -> None:
        super().__init__()
        self.out_features, self.number = out_features, number

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = torch.ops.compress.linear(values, self.out_features, self.number)
        return out


class Logits(nn.Module):
    """The model as a function of tokens and their mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, or the last hidden states of a model without a head."""
        out = self.model(input_ids=input_ids, attention_mask=attention_mask)
        logits: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
        return logits


def trace(
    student: nn.Module, plan: ExportPlan, *, names: Sequence[str] | None = None,
    cache: CacheShape | None = None,
) -> Any:  # fmt: skip
    """The student's graph as an `onnx_ir.Model`: batch and sequence dynamic, eval mode, fp32.

    Args:
        student: a Hugging Face model with its transforms attached; left as it was.
        plan: says which layers are quantised.
        names: layers that become placeholders, numbered in this order; None takes the plan's
            quantised ones, and its quantised embeddings by numbers of their own.
        cache: also take and give these keys and values, the past's length dynamic; None: neither.

    Raises:
        UnsupportedModel: PyTorch cannot export the model; says what it stumbled over.
        BadInput: an ONNX package is missing.
    """
    require_onnx()
    tables = [table.name for table in plan.tables] if names is None else []
    names = [layer.name for layer in plan.products] if names is None else names
    copied = _with_placeholders(student, names, tables)
    model = (Logits(copied) if cache is None else CachedLogits(copied)).eval()
    _register_schema()
    example, sizes = _example(cache)
    past, present = (cache.inputs, cache.outputs) if cache else ([], [])
    try:
        with _silent(), torch.no_grad():
            program: Any = torch.onnx.export(
                model, (), kwargs=example, dynamo=True,
                dynamic_shapes=sizes, opset_version=OPSET, verbose=False,
                input_names=[*INPUTS, *past], output_names=["logits", *present],
                custom_translation_table={
                    torch.ops.compress.linear.default: _translate,
                    torch.ops.compress.table.default: _translate_table,
                },
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UnsupportedModel(
            f"{type(student).__name__} does not export to ONNX: {reason}"
        ) from error
    return program.model


def _example(cache: CacheShape | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs to export with, and their dynamic axes."""
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    # two tensors: of one object under two names the exporter makes one input
    example: dict[str, Any] = {name: torch.ones(2, 8, dtype=torch.int64) for name in INPUTS}
    sizes: dict[str, Any] = {name: {0: batch, 1: sequence} for name in INPUTS}
    if cache is not None:
        example["past"] = cache.empty(2, 4)
        example["attention_mask"] = torch.ones(2, 12, dtype=torch.int64)
        sizes["attention_mask"] = {0: batch, 1: torch.export.Dim.DYNAMIC}
        sizes["past"] = [{0: batch, 2: torch.export.Dim("past")}] * len(example["past"])
    return example, sizes


@torch.no_grad()
def _with_placeholders(student: nn.Module, names: Sequence[str], tables: Sequence[str] = ()) -> Any:
    copied: Any = copy.deepcopy(student).float().cpu()
    if hasattr(copied, "config"):
        copied.config.use_cache = False
    if hasattr(copied, "set_attn_implementation"):
        copied.set_attn_implementation("eager")  # sdpa adds guards against rows that are all masked
    for number, name in enumerate(names):
        parent, _, last = name.rpartition(".")
        layer: Any = copied.get_submodule(name)
        setattr(copied.get_submodule(parent), last, _Placeholder(layer.out_features, number))
    for number, name in enumerate(tables):
        parent, _, last = name.rpartition(".")
        table: Any = copied.get_submodule(name)
        held = _TablePlaceholder(table.embedding_dim, number)
        setattr(copied.get_submodule(parent), last, held)
    settle_weights(copied)
    for layer in copied.modules():
        if hasattr(layer, INPUT_QUANTIZER):
            raise AssertionError(f"{type(layer).__name__} keeps an input quantiser")
    return copied


@torch.no_grad()
def settle_weights(copied: nn.Module) -> None:
    """Every transformed weight of a deep copy becomes the plain weight that it gives, in place.

    PyTorch's own `remove_parametrizations` takes the property from the layer's class, which a copy
    shares with its original: the original would lose its weight.
    """
    layers: list[Any] = list(copied.modules())
    for layer in layers:
        if transforms_of(layer):
            weight = layer.weight.detach().clone()
            layer.__class__ = type(layer).__bases__[0]
            del layer.parametrizations
            layer.weight = nn.Parameter(weight)


def _register_schema() -> None:
    from onnx import defs

    if defs.has(PRODUCT_OP, DOMAIN):
        return
    floats = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    _operator(PRODUCT_OP, "out_features", reads="T", makes="T", types=[("T", floats, "")])
    _operator(TABLE_OP, "width", reads="tensor(int64)", makes="tensor(float)", types=[])


def _operator(name: str, width: str, *, reads: str, makes: str, types: Any) -> None:
    from onnx import defs

    schema, kind = defs.OpSchema, defs.OpSchema.AttrType.INT
    defs.register_schema(
        schema(
            name, DOMAIN, 1,
            inputs=[schema.FormalParameter("values", reads)],
            outputs=[schema.FormalParameter("out", makes)],
            type_constraints=types,
            attributes=[schema.Attribute(n, kind, "") for n in (width, "number")],
        )
    )  # fmt: skip


def _translate(values: Any, out_features: int, number: int) -> Any:
    import onnxscript

    opset = onnxscript.values.Opset(DOMAIN, 1)
    return opset.Linear(values, out_features=out_features, number=number)


def _translate_table(tokens: Any, width: int, number: int) -> Any:
    import onnxscript

    opset = onnxscript.values.Opset(DOMAIN, 1)
    return opset.Table(tokens, width=width, number=number)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No remarks about packages that a language model does not need."""
    chatty = logging.getLogger("torch.onnx")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatty.setLevel(level)
