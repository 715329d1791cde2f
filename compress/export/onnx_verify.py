"""An ONNX folder beside the trained student: rules, codes and scales by value, zeros, logits."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import BadInput, ExportMismatch
from compress.export.onnx_cache import cache_shape, positions
from compress.export.onnx_layers import LAYERS_KEY, ProductLayer, read_layers
from compress.export.onnx_tables import read_tables, table_errors
from compress.export.plan import ExportPlan
from compress.export.reload import LARGEST_TOLERANCE, MEAN_TOLERANCE, two_shapes
from compress.export.tensorrt_lint import Graph, check_tensorrt, load_graph
from compress.quantize.calibration import evaluating


def verify_onnx(
    student: nn.Module,
    path: Path,
    *,
    plan: ExportPlan,
    batch: Mapping[str, Tensor] | None = None,
) -> tuple[float, int]:
    """Compare an ONNX file with the student: the largest logit difference, the constants compared.

    Raises:
        ExportMismatch: anything differs, or TensorRT would refuse the file; names what.
        BadInput: onnxruntime is missing.
    """
    check_tensorrt(path)
    compared = compare_layers(student, load_graph(path), plan)
    return compare_outputs(student, path, batch=batch), compared


def compare_layers(student: nn.Module, graph: Graph, plan: ExportPlan) -> int:
    """Every product's codes, scales, zeros and bias against the trained layer; how many constants.

    Raises:
        ExportMismatch: lists every layer that differs, is missing or stands twice.
    """
    expected = {layer.names[0]: layer for layer in read_layers(student, plan)}
    masks = {layer.name: layer.mask for layer in plan.layers if layer.mask is not None}
    wrong, seen, compared = [], [], 0
    for node, names in _products(graph):
        layers = [expected[name] for name in names if name in expected]
        seen += names
        errors, count = _product_errors(node, layers, graph, masks)
        wrong += [f"{', '.join(names)}: {error}" for error in errors]
        compared += count
    tables = read_tables(student, plan)
    wrong += table_errors(graph, tables)
    compared += 2 * len(tables)
    wrong += [f"{name}: no product computes it" for name in expected if name not in seen]
    wrong += [
        f"{name}: computed {seen.count(name)} times" for name in {*seen} if seen.count(name) > 1
    ]
    if wrong:
        raise ExportMismatch(
            f"{len(wrong)} differences between the ONNX file and the trained model:\n  "
            + "\n  ".join(wrong)
        )
    return compared


def _products(graph: Graph) -> Iterator[tuple[Any, list[str]]]:
    for node in graph.model.graph.node:
        names = {p.key: p.value for p in node.metadata_props}.get(LAYERS_KEY)
        if names:
            yield node, names.split(",")


def _product_errors(
    node: Any, layers: Sequence[ProductLayer], graph: Graph, masks: Mapping[str, Tensor]
) -> tuple[list[str], int]:
    dequantize = graph.producers.get(node.input[1])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return ["its weight is not dequantised"], 0
    codes, scale = (_floats(graph, name) for name in dequantize.input[:2])
    wanted = [torch.cat([x.codes_IO for x in layers], 1).numpy(), _scales(layers)]
    errors = [
        f"{int((held != told).sum())} of {told.size} {what} differ" if held.shape == told.shape
        else f"{what} of shape {held.shape} instead of {told.shape}"
        for what, held, told in zip(("codes", "weight scales"), (codes, scale), wanted, strict=True)
        if not np.array_equal(held, told)
    ]  # fmt: skip
    errors += [*_input_errors(node, layers, graph), *_alive(codes, layers, masks)]
    return errors, 2 + (layers[0].input_scale is not None)


def _floats(graph: Graph, name: str) -> Any:
    values = graph.array(name)
    if values is None:
        raise ExportMismatch(f"{name} is computed, not constant")
    return values.astype(np.float32)


def _scales(layers: Sequence[ProductLayer]) -> Any:
    scales = [layer.scale.float().numpy() for layer in layers if layer.scale is not None]
    return scales[0] if scales[0].ndim == 0 else np.concatenate(scales, axis=-1)


def _input_errors(node: Any, layers: Sequence[ProductLayer], graph: Graph) -> Iterator[str]:
    source = graph.producers.get(node.input[0])
    quantized = source is not None and source.op_type == "DequantizeLinear"
    for layer in layers:
        if layer.input_scale is None:
            if quantized:
                yield "its input is quantised, which it was not in training"
            continue
        held = graph.array(source.input[1]) if quantized and source is not None else None
        if held is None or float(held) != float(np.float32(layer.input_scale)):
            yield f"input scale {held} instead of {layer.input_scale:.6g} ({layer.names[0]})"


def _alive(
    codes_IO: Any, layers: Sequence[ProductLayer], masks: Mapping[str, Tensor]
) -> Iterator[str]:
    start = 0
    for layer in layers:
        (name,), (width,) = layer.names, layer.widths
        if name in masks:
            dead_IO = ~masks[name].cpu().T.numpy()
            alive = int((codes_IO[:, start : start + width][dead_IO] != 0).sum())
            if alive:
                yield f"{alive} masked weights of {name} are not zero"
        start += width


@torch.no_grad()
def compare_outputs(
    student: nn.Module, path: Path, *, batch: Mapping[str, Tensor] | None = None
) -> float:
    """The largest difference of outputs, two shapes of input, some of it padded.

    Raises:
        ExportMismatch: the outputs lie too far apart.
        BadInput: onnxruntime is missing.
    """
    session = open_exactly(path)
    compare = _compare_steps if len(session.get_inputs()) > 2 else _compare_pass
    return max(compare(student, session, inputs) for inputs in two_shapes(student, batch))


def _compare_pass(student: nn.Module, session: Any, inputs: dict[str, Tensor]) -> float:
    held = session.run(None, {k: v.cpu().numpy() for k, v in inputs.items()})[0]
    told = _outputs(student, **inputs)
    if told.shape != held.shape:
        raise ExportMismatch(f"outputs {held.shape} in onnxruntime instead of {told.shape}")
    # where a window sees nothing but padding, attention kernels differ and answers mean nothing
    seen = inputs["attention_mask"].bool().numpy() if told.ndim == 3 else ...
    return _gap(told[seen], held[seen])


def _compare_steps(student: nn.Module, session: Any, inputs: dict[str, Tensor]) -> float:
    """A prompt cut in a first part, a second one, and single tokens, padded on its left side.

    One comparison of all: a code that flips in one of a few positions moves their mean by much.
    """
    tokens, mask = inputs["input_ids"], inputs["attention_mask"].flip(-1)
    shape, length = cache_shape(student), tokens.shape[1]
    told = _outputs(
        student, input_ids=tokens, attention_mask=mask, position_ids=positions(mask, length)
    )
    past, done = [x.numpy() for x in shape.empty(tokens.shape[0])], 0
    answers: list[Any] = []
    for until in sorted({length // 2, length - 3, length - 2, length - 1, length} - {0}):
        if not done < until:
            continue
        feed = {
            "input_ids": tokens[:, done:until].numpy(),
            "attention_mask": mask[:, :until].numpy(),
        }
        held, *past = session.run(None, {**feed, **dict(zip(shape.inputs, past, strict=True))})
        answers.append(held)
        done = until
    seen = mask.bool().numpy()  # what padding answers means nothing
    return _gap(told[seen], np.concatenate(answers, axis=1)[seen])


def _outputs(student: nn.Module, **inputs: Tensor) -> Any:
    device = next(student.parameters()).device
    with evaluating(student):
        answer = student(**{k: v.to(device) for k, v in inputs.items()})
    told = getattr(answer, "logits", None)
    return (answer.last_hidden_state if told is None else told).float().cpu().numpy()


def _gap(told: Any, held: Any) -> float:
    gap, mean = np.abs(told - held).max(), np.abs(told - held).mean()
    size = max(1.0, float(np.abs(told).max()))
    if not (gap <= LARGEST_TOLERANCE * size and mean <= MEAN_TOLERANCE * size):
        raise ExportMismatch(
            f"outputs in onnxruntime differ by {mean:.3g} on average and up to {gap:.3g}; "
            f"allowed {MEAN_TOLERANCE * size:.3g} and {LARGEST_TOLERANCE * size:.3g}"
        )
    return float(gap)


def open_exactly(path: Path) -> Any:
    """An onnxruntime session that computes what the file says: no rewrites.

    Raises:
        BadInput: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError:
        raise BadInput("onnxruntime is missing: pip install 'compress-lm[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
