"""TensorRT's rules for an ONNX file, checked without it: every node that breaks one is listed.

Rules from NVIDIA's "Working with quantized types" and onnx-tensorrt's `docs/operators.md`. They are
necessary, not sufficient: only a build on a GPU proves that a file builds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import ExportMismatch
from compress.export.onnx_clean import CACHE_RANK

OPSETS = (21, 25)
"""INT4 and block-wise scales begin at 21; the parser reads up to 25."""

QUANTIZED = ("int8", "int4", "float8_e4m3fn")
INT4_BLOCKS = (64, 128)
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
TRAINING_ONLY = ("Dropout", "BatchNormalization")
UNSUPPORTED = frozenset(
    [
        "Bernoulli",
        "BitShift",
        "Compress",
        "ConcatFromSequence",
        "ConvInteger",
        "DFT",
        "Det",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "Optional",
        "QLinearConv",
        "NegativeLogLikelihoodLoss",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearMatMul",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringNormalizer",
        "TfIdfVectorizer",
        "Unique",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A node, and the rule that it breaks."""

    node: str
    rule: str

    def __str__(self) -> str:
        """Node and rule on one line."""
        return f"{self.node}: {self.rule}"


@dataclass(frozen=True)
class Graph:
    """An `onnx.ModelProto` with what the rules look up."""

    model: Any
    folder: str = ""

    @cached_property
    def initializers(self) -> dict[str, Any]:
        """Constant tensors by name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def producers(self) -> dict[str, Any]:
        """Value -> the node that makes it."""
        return {out: node for node in self.model.graph.node for out in node.output}

    @cached_property
    def readers(self) -> dict[str, list[Any]]:
        """Value -> the nodes that read it."""
        found: dict[str, list[Any]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def array(self, name: str) -> Any | None:
        """A constant's numbers; None where the value is computed."""
        from onnx import numpy_helper

        tensor = self.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor, base_dir=self.folder)

    def kind(self, name: str) -> str:
        """The element type of a constant, in onnx's word."""
        from onnx import TensorProto

        word: str = TensorProto.DataType.Name(self.initializers[name].data_type)
        return {"FLOAT8E4M3FN": "float8_e4m3fn"}.get(word, word.lower())


def load_graph(path: str | Path) -> Graph:
    """An ONNX file, its large weights left where they are."""
    import onnx

    return Graph(onnx.load(path, load_external_data=False), folder=str(Path(path).parent))


def check_tensorrt(path: str | Path) -> None:
    """Onnx's own full check, then every rule of this file.

    Raises:
        ExportMismatch: lists every offending node.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportMismatch(f"{path} is no valid ONNX: {str(error).splitlines()[0]}") from error
    findings = lint(load_graph(path))
    if findings:
        listed = "\n  ".join(str(finding) for finding in findings)
        raise ExportMismatch(f"TensorRT would refuse {len(findings)} things in {path}:\n  {listed}")


def lint(graph: Graph) -> list[Finding]:
    """Everything in the graph that breaks a rule; empty where nothing does."""
    nodes = [finding for node in graph.model.graph.node for finding in _node(node, graph)]
    return [*_opset(graph), *_inputs(graph), *nodes]


def _opset(graph: Graph) -> Iterator[Finding]:
    for entry in graph.model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            if not OPSETS[0] <= entry.version <= OPSETS[1]:
                rule = f"opset {entry.version} lies outside {OPSETS[0]} to {OPSETS[1]}"
                yield Finding(node="model", rule=rule)
        else:
            yield Finding(node="model", rule=f"imports operators of {entry.domain!r}")


def _inputs(graph: Graph) -> Iterator[Finding]:
    for value in graph.model.graph.input:
        dims = list(value.type.tensor_type.shape.dim)
        # keys and values of a cache: batch, heads, tokens, width
        axes = (0, 2) if len(dims) == CACHE_RANK else (0, 1)
        fixed = [str(dims[a].dim_value) for a in axes if a < len(dims) and not dims[a].dim_param]
        if fixed:
            yield Finding(
                node=value.name, rule=f"batch and sequence are fixed: {' x '.join(fixed)}"
            )


def _node(node: Any, graph: Graph) -> Iterator[Finding]:
    name = node.name or node.output[0]
    for rule in _broken_rules(node, graph):
        yield Finding(node=f"{name} ({node.op_type})", rule=rule)


def _broken_rules(node: Any, graph: Graph) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"is of the domain {node.domain!r}, which TensorRT does not read"
    elif node.op_type in TRAINING_ONLY:
        yield "is for training only; it should be folded or gone"
    elif node.op_type in UNSUPPORTED:
        yield "has no counterpart in TensorRT"
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _scales(node, graph)
        yield from _zero_points(node, graph)
        yield from _granularity(node, graph)
        yield from _neighbours(node, graph)
    constants = [graph.initializers[name] for name in node.input if name in graph.initializers]
    if any(tensor.data_type == _double() for tensor in constants):
        yield "reads a constant in double precision"


def _double() -> int:
    from onnx import TensorProto

    return int(TensorProto.DOUBLE)


def _scales(node: Any, graph: Graph) -> Iterator[str]:
    scale = graph.array(node.input[1])
    if scale is None:
        yield "its scale is computed, not constant"
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        yield "a scale is not positive and finite"


def _zero_points(node: Any, graph: Graph) -> Iterator[str]:
    if len(node.input) < 3 or not node.input[2]:
        yield "has no zero point, so its type is uint8"
        return
    zero = graph.array(node.input[2])
    if zero is None:
        yield "its zero point is computed, not constant"
        return
    kind = graph.kind(node.input[2])
    if kind not in QUANTIZED:
        yield f"quantises to {kind}; TensorRT takes {', '.join(QUANTIZED)}"
    if (zero.astype(np.float32) != 0).any():
        yield "a zero point is not 0: TensorRT is symmetric"


def _granularity(node: Any, graph: Graph) -> Iterator[str]:
    scale = graph.array(node.input[1])
    if scale is None:
        return
    constant = node.input[0] in graph.initializers
    settings = {a.name: a.i for a in node.attribute}
    block = settings.get("block_size", 0)
    zero = node.input[2] if len(node.input) > 2 else ""
    int4 = zero in graph.initializers and graph.kind(zero) == "int4"
    if scale.ndim and not constant:
        yield f"has {scale.size} scales for an activation; one is allowed"
    if int4 and not constant:
        yield "quantises an activation to INT4, which is for weights alone"
    if int4 and block not in INT4_BLOCKS:
        yield f"INT4 needs blocks of {' or '.join(map(str, INT4_BLOCKS))}, not {block or 'none'}"
    if block and not int4:
        yield "block-wise scales are for INT4 weights alone"
    if constant and scale.ndim == 1 and not block:
        yield from _channel_axis(node, graph, axis=settings.get("axis", 1))


def _channel_axis(node: Any, graph: Graph, *, axis: int) -> Iterator[str]:
    rank = len(graph.initializers[node.input[0]].dims)
    for reader in graph.readers.get(node.output[0], []):
        transposed = any(a.name == "transB" and a.i for a in reader.attribute)
        outputs_last = reader.op_type == "MatMul" or (reader.op_type == "Gemm" and not transposed)
        wanted = rank - 1 if outputs_last else 1 if reader.op_type == "ConvTranspose" else 0
        if reader.op_type in PRODUCTS and axis % rank != wanted:
            yield f"its scales run along axis {axis}; {reader.op_type} has its outputs on {wanted}"


def _looks_up_codes(node: Any, graph: Graph) -> bool:
    if node.op_type == "Reshape" and node.input[0] in graph.producers:
        node = graph.producers[node.input[0]]
    constant = node.op_type == "Gather" and node.input[0] in graph.initializers
    return constant and graph.kind(node.input[0]) == "int8"


def _neighbours(node: Any, graph: Graph) -> Iterator[str]:
    readers = graph.readers.get(node.output[0], [])
    if node.op_type == "QuantizeLinear":
        if not readers or any(reader.op_type != "DequantizeLinear" for reader in readers):
            yield "is not followed by DequantizeLinear alone"
        return
    source = graph.producers.get(node.input[0])
    if node.input[0] in graph.initializers:
        strangers = sorted({r.op_type for r in readers} - {*PRODUCTS, "Transpose"})
        if strangers:
            yield f"dequantises a weight for {', '.join(strangers)}, which has no quantised kernel"
    elif source is not None and _looks_up_codes(source, graph):
        return  # an embedding's int8 codes: TensorRT gathers INT8
    elif source is None or source.op_type != "QuantizeLinear":
        yield "dequantises what no QuantizeLinear made"
    elif list(source.input[1:]) != list(node.input[1:]):
        yield "has another scale or zero point than the QuantizeLinear before it"
