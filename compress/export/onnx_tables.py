"""Quantised embedding tables in an ONNX graph: int8 codes are looked up, then scaled.

Codes are dequantised after the look-up: before it, runtimes would compute the whole table anew for
each input. A scale a row is looked up like its codes and multiplied onto them.

Legend: V rows, H columns of a table, G groups of columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.export.codes import expected_codes
from compress.export.onnx_layers import NodeWriter
from compress.export.onnx_program import DOMAIN, TABLE_OP
from compress.export.plan import ExportPlan
from compress.export.tensorrt_lint import Graph
from compress.transforms import Stage, weight_before

TABLE_KEY = "compress.table"
"""Metadata of a look-up: the name of the embedding whose codes it reads."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One embedding as the file holds it; plain numbers in fp32 where `scale` is None.

    Args:
        name: of the layer.
        codes_VH: plain numbers in fp32, within int8 where there is a scale.
        scale: () for one of the whole table, else (V, G).
    """

    name: str
    codes_VH: Tensor
    scale: Tensor | None = None


@torch.no_grad()
def read_tables(student: nn.Module, plan: ExportPlan, *, dense: bool = False) -> list[Table]:
    """Every quantised embedding, in the plan's order.

    Args:
        student: transforms attached.
        plan: of the student.
        dense: the trained weights instead of codes, for an unquantised twin.
    """
    modules = dict(student.named_modules())
    found = []
    for planned in plan.tables:
        weight_VH = weight_before(modules[planned.name], Stage.QUANTIZE).detach().cpu().float()
        if dense or planned.weights is None:
            found.append(Table(name=planned.name, codes_VH=weight_VH))
            continue
        tensors = {key: value.detach().cpu() for key, value in planned.tensors.items()}
        scale = tensors["weight_scale"].float()
        whole = planned.weights.strategy == "tensor"
        found.append(
            Table(
                name=planned.name,
                codes_VH=expected_codes(weight_VH, tensors, planned.weights),
                scale=scale.reshape(()) if whole else scale.reshape(len(weight_VH), -1),
            )
        )
    return found


def write_tables(model: Any, tables: Sequence[Table]) -> None:
    """Replace each placeholder of an embedding by its look-up, in place.

    Args:
        model: an `onnx_ir.Model` from `trace`.
        tables: by number.
    """
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == TABLE_OP:
            _write(model.graph, node, tables[node.attributes["number"].as_int()])
    model.opset_imports.pop(DOMAIN, None)


def _write(graph: Any, node: Any, table: Table) -> None:
    import onnx_ir as ir

    writer, tokens = NodeWriter(graph, before=node, name=table.name), node.inputs[0]
    kind = np.float32 if table.scale is None else np.int8
    codes = writer.constant("weight", table.codes_VH.numpy().astype(kind))
    out = writer.add("Gather", [codes, tokens], "codes")
    out.producer().metadata_props[TABLE_KEY] = table.name
    if table.scale is not None:
        out = _scaled(writer, out, tokens, table)
    # the placeholder's type cannot be told from its tokens
    out.shape, out.dtype = node.outputs[0].shape, ir.DataType.FLOAT
    node.outputs[0].replace_all_uses_with(out, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _scaled(writer: NodeWriter, codes: Any, tokens: Any, table: Table) -> Any:
    assert table.scale is not None
    if table.scale.ndim == 0:
        return _dequantized(writer, codes, float(table.scale))
    rows = writer.constant("weight_scale", table.scale.numpy().astype(np.float32))
    scales = writer.add("Gather", [rows, tokens], "scales")
    groups, width = table.scale.shape[1], table.codes_VH.shape[1]
    if groups == 1:
        return writer.add("Mul", [_dequantized(writer, codes, 1.0), scales], "scaled")
    lead = [0] * len(tokens.shape)  # 0 keeps an axis as it is
    split = writer.constant("groups", np.asarray([*lead, groups, width // groups], np.int64))
    whole = writer.constant("width", np.asarray([*lead, width], np.int64))
    last = writer.constant("last_axis", np.asarray([-1], np.int64))
    columns = writer.add("Unsqueeze", [scales, last], "scale_columns")
    # codes change their shape, not numbers: onnxruntime would quantise these again, wrongly
    grouped = _dequantized(writer, writer.add("Reshape", [codes, split], "grouped"), 1.0)
    return writer.add("Reshape", [writer.add("Mul", [grouped, columns], "scaled"), whole], "joined")


def _dequantized(writer: NodeWriter, codes: Any, scale: float) -> Any:
    one = writer.constant("scale", np.asarray(scale, np.float32))
    zero = writer.constant("zero_point", np.zeros((), np.int8))
    return writer.add("DequantizeLinear", [codes, one, zero], "dequantized")


def table_errors(graph: Graph, tables: Sequence[Table]) -> Iterator[str]:
    """What differs between the file's tables and the trained ones, name first."""
    found = dict(_lookups(graph))
    for table in tables:
        node = found.get(table.name)
        if node is None:
            yield f"{table.name}: no look-up reads its codes"
            continue
        told = {f"{table.name}/weight": table.codes_VH.numpy()}
        if table.scale is not None:
            key = "scale" if table.scale.ndim == 0 else "weight_scale"
            told[f"{table.name}/{key}"] = table.scale.numpy()
        for name, wanted in told.items():
            yield from _difference(table.name, name, graph.array(name), wanted)


def _lookups(graph: Graph) -> Iterator[tuple[str, Any]]:
    for node in graph.model.graph.node:
        metadata: Mapping[str, str] = {p.key: p.value for p in node.metadata_props}
        if TABLE_KEY in metadata:
            yield metadata[TABLE_KEY], node


def _difference(layer: str, name: str, held: Any, wanted: Any) -> Iterator[str]:
    if held is None or held.shape != wanted.shape:
        yield f"{layer}: {name} is missing or misshapen"
    elif wrong := int((held.astype(np.float32) != wanted.astype(np.float32)).sum()):
        yield f"{layer}: {wrong} of {wanted.size} values of {name} differ"
