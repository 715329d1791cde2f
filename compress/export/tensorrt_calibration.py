"""TensorRT's INT8 calibration cache, from trained scales: for implicit quantisation.

A text file: a header naming the calibrator, then `tensor: scale` a line, the scale as the eight hex
digits of its big-endian float32. A tensor's range is 127 scales to either side.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

from compress.errors import BadInput
from compress.export.onnx_layers import LAYERS_KEY
from compress.export.plan import ExportPlan

CACHE_FILE = "calibration.cache"
HEADER = "TRT-100000-EntropyCalibration2"


def cache_text(scales: Mapping[str, float]) -> str:
    """The cache of these tensors.

    >>> cache_text({"x": 1.0}).splitlines()[1]
    'x: 3f800000'
    """
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return "\n".join([HEADER, *lines]) + "\n"


def read_cache(text: str) -> dict[str, float]:
    """The scales that a cache holds.

    Raises:
        BadInput: it is no calibration cache; names the line.
    """
    header, *lines = text.splitlines() or [""]
    if not header.startswith("TRT-"):
        raise BadInput(f"no calibration cache: it begins with {header[:40]!r}, not with TRT-")
    found = {}
    for number, line in enumerate(lines, start=2):
        name, _, digits = line.rpartition(": ")
        try:
            found[name] = float(struct.unpack(">f", bytes.fromhex(digits))[0])
        except (ValueError, struct.error):
            raise BadInput(f"calibration cache, line {number}: {line[:60]!r}") from None
    return found


def write_calibration(plan: ExportPlan, folder: Path, *, onnx_file: str) -> Path:
    """`calibration.cache` beside an unquantised ONNX: one scale for each input of a product.

    Raises:
        BadInput: no layer has a static INT8 input.
    """
    path = folder / CACHE_FILE
    path.write_text(cache_text(_by_tensor(folder / onnx_file, static_scales(plan))))
    return path


def static_scales(plan: ExportPlan) -> dict[str, float]:
    """Layer -> trained scale of its static INT8 input.

    Raises:
        BadInput: there is none.
    """
    static = {
        layer.name: float(layer.tensors["input_scale"])
        for layer in plan.quantized
        if layer.inputs and layer.inputs.type == "int" and "input_scale" in layer.tensors
    }
    if not static:
        raise BadInput("calibration=true: no layer has a static INT8 input; use W8A8 and static")
    return static


def _by_tensor(onnx_path: Path, static: Mapping[str, float]) -> dict[str, float]:
    import onnx

    scales: dict[str, float] = {}
    for node in onnx.load(onnx_path, load_external_data=False).graph.node:
        names = {p.key: p.value for p in node.metadata_props}.get(LAYERS_KEY, "")
        for name in filter(None, names.split(",")):
            # two products of one tensor: the wider range, so that neither saturates
            scales[node.input[0]] = max(scales.get(node.input[0], 0.0), static.get(name, 0.0))
    return {name: scale for name, scale in scales.items() if scale > 0.0}
