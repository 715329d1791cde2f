"""Rewrites of an exported ONNX graph that change no result and that runtimes are faster by.

Dropout is gone and BatchNorm folded into its convolution by PyTorch's exporter already.
"""

from typing import Any

CACHE_RANK = 4
"""Axes of keys and values: batch, heads, tokens, width."""
TRAINING_ONLY = ("Dropout", "BatchNormalization")


def clean(model: Any) -> None:
    """Apply every rewrite of this file to an `onnx_ir.Model`, in place."""
    divide_by_roots(model.graph)
    name_axes(model.graph)


def divide_by_roots(graph: Any) -> None:
    """`x * (1 / y)` becomes `x / y`: the form in which runtimes know a normalisation by its root.

    Only where nothing else reads the reciprocal.
    """
    import onnx_ir as ir

    for node in list(graph):
        if node.op_type != "Mul":
            continue
        inverse = [v.producer() for v in node.inputs]
        found = [p for p in inverse if p is not None and p.op_type == "Reciprocal"]
        if len(found) != 1 or len(found[0].outputs[0].uses()) != 1:
            continue
        other = node.inputs[1 - inverse.index(found[0])]
        division = ir.node("Div", [other, found[0].inputs[0]], name=node.name)
        division.outputs[0].name = node.outputs[0].name
        division.outputs[0].shape = node.outputs[0].shape
        division.outputs[0].dtype = node.outputs[0].dtype
        graph.insert_before(node, division)
        node.outputs[0].replace_all_uses_with(division.outputs[0], replace_graph_outputs=True)
        graph.remove([node, found[0]], safe=True)


def name_axes(graph: Any) -> None:
    """Dynamic axes are called `batch`, `sequence`, `past`, and `total` for both."""
    import onnx_ir as ir

    cached = any(len(value.shape) == CACHE_RANK for value in graph.inputs)
    for value in graph.inputs:
        value.shape = ir.Shape(_axes(value, cached=cached, length="past"))
    for value in graph.outputs:
        value.shape = ir.Shape(_axes(value, cached=cached, length="total"))


def _axes(value: Any, *, cached: bool, length: str) -> list[Any]:
    dims = list(value.shape)
    if len(dims) == CACHE_RANK:
        return ["batch", dims[1], length, dims[3]]
    if len(dims) == 2 and value.producer() is not None:
        return ["batch", dims[1]]  # a classifier's answer
    masks = cached and value.name == "attention_mask"
    return ["batch", "total" if masks else "sequence", *dims[2:]]
