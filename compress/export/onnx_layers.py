"""Writes quantised layers into an ONNX graph: Q/DQ with the trained scales around each product.

Layers that read one value and agree on their scheme (q/k/v, gate/up) become one product with one
quantised input: runtimes leave a shared quantised input unfused.

Legend: I inputs, O outputs of a layer, G groups of inputs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor, nn

from compress.export.codes import expected_codes
from compress.export.onnx_program import DOMAIN, PRODUCT_OP
from compress.export.plan import ExportPlan
from compress.transforms import Stage, weight_before

LAYERS_KEY = "compress.layers"
"""Metadata of a product: the names of the layers it computes, in the order of their outputs."""


@dataclass(frozen=True, kw_only=True)
class ProductLayer:
    """One linear layer, or several side by side, as the file holds them.

    `codes_IO` are plain numbers in fp32, or the weights themselves where `weights` is None.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    codes_IO: Tensor
    weights: QuantizationArgs | None = None
    scale: Tensor | None = None
    inputs: QuantizationArgs | None = None
    input_scale: float | None = None
    bias_O: Tensor | None = None

    @property
    def number_format(self) -> str:
        """`int8`, `int4` or `float8_e4m3fn`."""
        assert self.weights is not None
        return number_format(self.weights)

    def scheme(self) -> tuple[Any, ...]:
        """What must agree for two layers to share a product."""
        args = self.weights
        if args is None:
            return (self.bias_O is None,)
        assert self.scale is not None
        shared = float(self.scale) if args.strategy == "tensor" else None
        kind = (args.type, args.num_bits, args.strategy, args.group_size, shared)
        return (*kind, self.input_scale, self.bias_O is None)


def number_format(args: QuantizationArgs) -> str:
    """The ONNX element type of codes.

    >>> number_format(QuantizationArgs(num_bits=4, group_size=64))
    'int4'
    """
    return f"int{args.num_bits}" if args.type == "int" else "float8_e4m3fn"


def read_layers(student: nn.Module, plan: ExportPlan) -> list[ProductLayer]:
    """Codes and scales of every quantised linear layer, in the plan's order; codes made in fp32."""
    modules = dict(student.named_modules())
    return [_read(modules[planned.name], planned) for planned in plan.products]


@torch.no_grad()
def _read(layer: Any, planned: Any) -> ProductLayer:
    weight_OI = weight_before(layer, Stage.QUANTIZE).detach().to("cpu", torch.float32)
    tensors = {key: value.detach().cpu() for key, value in planned.tensors.items()}
    static = tensors.get("input_scale")
    return ProductLayer(
        names=(planned.name,),
        widths=(weight_OI.shape[0],),
        codes_IO=expected_codes(weight_OI, tensors, planned.weights).T,
        weights=planned.weights,
        scale=_scale_layout(tensors["weight_scale"].float(), planned.weights),
        inputs=planned.inputs,
        input_scale=None if static is None else float(static),
        bias_O=_bias(layer),
    )


@torch.no_grad()
def dense_layers(student: nn.Module, plan: ExportPlan) -> list[ProductLayer]:
    """The same layers with the weights that quantisers see, for an unquantised twin."""
    modules: dict[str, Any] = dict(student.named_modules())
    found = []
    for planned in plan.products:
        layer = modules[planned.name]
        weight_OI = weight_before(layer, Stage.QUANTIZE).detach().to("cpu", torch.float32)
        name, width = (planned.name,), (weight_OI.shape[0],)
        found.append(
            ProductLayer(names=name, widths=width, codes_IO=weight_OI.T, bias_O=_bias(layer))
        )
    return found


def _bias(layer: Any) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach().to("cpu", torch.float32)


def _scale_layout(scale: Tensor, args: QuantizationArgs) -> Tensor:
    """ONNX's: a scalar, (O,) for channels, (G, O) for groups."""
    if args.strategy == "tensor":
        return scale.reshape(())
    return scale.reshape(-1) if args.strategy == "channel" else scale.T.contiguous()


def write_layers(model: Any, layers: Sequence[ProductLayer], *, fuse: bool = True) -> None:
    """Replace each `compress::Linear` node by the product it stands for, in place.

    Args:
        model: an `onnx_ir.Model` from `trace`.
        layers: by number.
        fuse: whether layers that read one value share a product where they can.
    """
    for nodes in _by_input(model.graph):
        numbered = [(node, layers[node.attributes["number"].as_int()]) for node in nodes]
        for part in _agreeing(numbered) if fuse else [[pair] for pair in numbered]:
            _write(model.graph, [node for node, _ in part], joined([layer for _, layer in part]))
    if not any(node.domain == DOMAIN for node in model.graph):
        model.opset_imports.pop(DOMAIN, None)


def _by_input(graph: Any) -> list[list[Any]]:
    found: dict[int, list[Any]] = {}
    for node in graph:
        if node.domain == DOMAIN and node.op_type == PRODUCT_OP:
            found.setdefault(id(node.inputs[0]), []).append(node)
    return list(found.values())


def _agreeing(
    numbered: Iterable[tuple[Any, ProductLayer]],
) -> list[list[tuple[Any, ProductLayer]]]:
    parts: dict[tuple[Any, ...], list[tuple[Any, ProductLayer]]] = {}
    for node, layer in numbered:
        parts.setdefault(layer.scheme(), []).append((node, layer))
    return list(parts.values())


def joined(layers: Sequence[ProductLayer]) -> ProductLayer:
    """Layers of one scheme side by side, as one wider layer."""
    first = layers[0]
    scale = first.scale
    if first.weights is not None and first.weights.strategy != "tensor":
        scale = torch.cat([layer.scale for layer in layers if layer.scale is not None], dim=-1)
    biases = [layer.bias_O for layer in layers if layer.bias_O is not None]
    return replace(
        first,
        names=tuple(name for layer in layers for name in layer.names),
        widths=tuple(width for layer in layers for width in layer.widths),
        codes_IO=torch.cat([layer.codes_IO for layer in layers], dim=1),
        scale=scale,
        bias_O=torch.cat(biases) if biases else None,
    )


def _write(graph: Any, nodes: Sequence[Any], layer: ProductLayer) -> None:
    writer = NodeWriter(graph, before=nodes[0], name=layer.names[0])
    values = nodes[0].inputs[0]
    if layer.input_scale is not None:
        values = writer.rounded(values, layer)
    out = writer.add("MatMul", [values, writer.weight(layer)], "product")
    out.producer().metadata_props[LAYERS_KEY] = ",".join(layer.names)
    if layer.bias_O is not None:
        out = writer.add("Add", [out, writer.constant("bias", layer.bias_O.numpy())], "biased")
    parts = [out] if len(nodes) == 1 else writer.split(out, layer.widths)
    for node, part in zip(nodes, parts, strict=True):
        part.shape, part.dtype = node.outputs[0].shape, node.outputs[0].dtype
        node.outputs[0].replace_all_uses_with(part, replace_graph_outputs=True)
        graph.remove(node, safe=True)


class NodeWriter:
    """Adds nodes before one node, and constants, under names that begin with a layer's."""

    def __init__(self, graph: Any, *, before: Any, name: str) -> None:
        """`name` begins every name."""
        self.graph, self.before, self.name = graph, before, name

    def add(self, op: str, inputs: list[Any], name: str, **attributes: Any) -> Any:
        """A node; its output."""
        import onnx_ir as ir

        named = f"{self.name}/{name}"
        node = ir.node(op, inputs, attributes or None, name=named)
        node.outputs[0].name = named
        self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def constant(self, name: str, array: Any) -> Any:
        """An initialiser."""
        import onnx_ir as ir

        named = f"{self.name}/{name}"
        # not ascontiguousarray: it gives a scalar an axis
        tensor = ir.tensor(np.array(array, order="C"), name=named)
        value = ir.Value(name=named, const_value=tensor)
        value.dtype, value.shape = tensor.dtype, tensor.shape
        self.graph.register_initializer(value)
        return value

    def rounded(self, values: Any, layer: ProductLayer) -> Any:
        """The layer's input on its grid."""
        assert layer.inputs is not None
        dtype = numpy_dtype(number_format(layer.inputs))
        scale = self.constant("input_scale", np.float32(layer.input_scale).reshape(()))
        # without an explicit zero point onnxruntime takes uint8 and fuses nothing
        zero = self.constant("input_zero_point", np.zeros((), dtype))
        quantized = self.add("QuantizeLinear", [values, scale, zero], "quantized")
        return self.add("DequantizeLinear", [quantized, scale, zero], "rounded")

    def weight(self, layer: ProductLayer) -> Any:
        """The layer's weight, dequantised where it has codes."""
        if layer.weights is None:
            return self.constant("weight", layer.codes_IO.numpy())
        assert layer.scale is not None
        dtype = numpy_dtype(layer.number_format)
        codes = self.constant("weight", layer.codes_IO.numpy().astype(dtype))
        scale = self.constant("weight_scale", layer.scale.numpy().astype(np.float32))
        zero = self.constant("weight_zero_point", np.zeros(tuple(layer.scale.shape), dtype))
        where: Mapping[str, int] = {}
        if layer.weights.strategy == "channel":
            where = {"axis": 1}
        elif layer.weights.strategy == "group":
            where = {"axis": 0, "block_size": int(layer.weights.group_size)}
        return self.add("DequantizeLinear", [codes, scale, zero], "dequantized", **where)

    def split(self, out: Any, widths: Sequence[int]) -> list[Any]:
        """Parts of the last axis."""
        import onnx_ir as ir

        sizes = self.constant("widths", np.asarray(widths, dtype=np.int64))
        node = ir.node(
            "Split", [out, sizes], {"axis": -1},
            num_outputs=len(widths), name=f"{self.name}/split",
        )  # fmt: skip
        for number, value in enumerate(node.outputs):
            value.name = f"{self.name}/part_{number}"
        self.graph.insert_before(self.before, node)
        return list(node.outputs)


def numpy_dtype(name: str) -> Any:
    """The numpy dtype of an ONNX element type, from `ml_dtypes` where numpy has none.

    >>> numpy_dtype("int8")
    dtype('int8')
    """
    if hasattr(np, name):
        return np.dtype(getattr(np, name))
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name))
