"""A folder that `trtexec` turns into an engine: ONNX with Q/DQ, its commands, its configuration."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.export.onnx_cache import CacheShape, cache_shape
from compress.export.onnx_clean import clean
from compress.export.onnx_layers import dense_layers, read_layers, write_layers
from compress.export.onnx_program import INPUTS, trace
from compress.export.onnx_tables import read_tables, write_tables
from compress.export.plan import ExportPlan
from compress.export.sparsity import faster_in, write_sparsity
from compress.export.tensorrt_calibration import static_scales, write_calibration
from compress.export.vllm import write_config

ONNX_FILE = "model.onnx"
COMMANDS_FILE = "trtexec.sh"
IMPLICIT_FOLDER = "implicit"
ONE_FILE_BYTES = 1 << 30
"""Larger weights lie beside, in `model.onnx.data`: a protobuf ends at 2 GB."""


def write_tensorrt(
    student: nn.Module,
    plan: ExportPlan,
    folder: Path,
    *,
    dtype: torch.dtype,
    calibration: bool = False,
    cache: bool = False,
) -> list[Path]:
    """Write `model.onnx`, `trtexec.sh`, `config.json` and `sparsity.json`; the weight files.

    Args:
        student: a Hugging Face model with its transforms attached; left as it was.
        plan: what is quantised; the gate has let it through.
        folder: exists, is empty.
        dtype: of what is not quantised: float32 (the gate refuses others).
        calibration: also write `implicit/`: the unquantised graph and an INT8 calibration cache
            with the trained ranges, for users of implicit quantisation.
        cache: a decoder's keys and values become inputs and outputs, see `onnx_cache`.

    Raises:
        UnsupportedModel: PyTorch cannot export the model, or it has no such cache.
        BadInput: an ONNX package is missing.
    """
    if calibration:
        static_scales(plan)  # refuses before the slow part
    held = cache_shape(student) if cache else None
    graph = trace(student, plan, cache=held)
    plain = graph.clone() if calibration else None
    write_layers(graph, read_layers(student, plan))
    write_tables(graph, read_tables(student, plan))
    files = save_onnx(graph, folder / ONNX_FILE)
    if plain is not None:
        (folder / IMPLICIT_FOLDER).mkdir()
        write_layers(plain, dense_layers(student, plan), fuse=False)
        write_tables(plain, read_tables(student, plan, dense=True))
        save_onnx(plain, folder / IMPLICIT_FOLDER / ONNX_FILE)
        write_calibration(plan, folder / IMPLICIT_FOLDER, onnx_file=ONNX_FILE)
    write_config(student, folder, dtype=dtype, quantization=None)
    write_sparsity(plan, folder)
    length = int(getattr(plan.config, "max_position_embeddings", 512))
    script = commands(plan, longest=length, calibration=calibration, cache=held)
    (folder / COMMANDS_FILE).write_text(script)
    return files


def write_dense(
    student: nn.Module, plan: ExportPlan, path: Path, *, cache: bool = False
) -> list[Path]:
    """The model without quantisers (masks stay) as ONNX: the original in a comparison."""
    graph = trace(student, plan, names=[], cache=cache_shape(student) if cache else None)
    return save_onnx(graph, path)


def save_onnx(graph: Any, path: Path) -> list[Path]:
    """Write an `onnx_ir.Model`; the files that hold weights."""
    import onnx_ir as ir

    clean(graph)
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    beside = f"{path.name}.data" if size > ONE_FILE_BYTES else None
    ir.save(graph, path, external_data=beside)
    return [path, *([path.with_name(beside)] if beside else [])]


def shapes(batch: int, length: int, *, past: int = 0, cache: CacheShape | None = None) -> str:
    """One shape for every input, in `trtexec`'s words.

    >>> shapes(1, 8)
    'input_ids:1x8,attention_mask:1x8'
    """
    words = [f"{INPUTS[0]}:{batch}x{length}", f"{INPUTS[1]}:{batch}x{past + length}"]
    if cache is not None:
        words += [
            f"{name}:{'x'.join(map(str, value.shape))}"
            for name, value in zip(cache.inputs, cache.empty(batch, past), strict=True)
        ]
    return ",".join(words)


def commands(
    plan: ExportPlan, *, longest: int, calibration: bool, cache: CacheShape | None = None
) -> str:
    """The `trtexec` commands as a shell script; the sparse one runs where zeros are 2:4."""
    usual = min(128, longest)
    # with a cache: tuned for one token after a prompt, and a whole prompt is let through too
    best = shapes(8, 1, past=usual, cache=cache) if cache else shapes(8, usual)
    build = [
        "trtexec --onnx=model.onnx --stronglyTyped",
        f"--minShapes={shapes(1, 1, cache=cache)}",
        f"--optShapes={best}",
        f"--maxShapes={shapes(32, longest, past=longest if cache else 0, cache=cache)}",
    ]
    dense = " \\\n  ".join([*build, "--saveEngine=model.plan"])
    sparse = " \\\n  ".join([*build, "--sparsity=enable", "--saveEngine=model.sparse.plan"])
    pays = "tensorrt" in faster_in(plan)
    note = "every masked layer is 2:4" if pays else "no layer is 2:4: it will not be faster"
    mark = "" if pays else "# "
    lines = [
        "#!/bin/sh", "# Builds TensorRT engines; run it in this folder, on the GPU that serves.",
        "set -e", "", dense, "", f"# sparse tensor cores: {note}",
        "\n".join(f"{mark}{line}" for line in sparse.splitlines()),
    ]  # fmt: skip
    if calibration:
        implicit = " \\\n".join(
            f"#   {part}"
            for part in (
                f"trtexec --onnx={IMPLICIT_FOLDER}/model.onnx --int8 --fp16",
                f"  --calib={IMPLICIT_FOLDER}/calibration.cache",
                *(f"  {part}" for part in build[1:]),
                "  --saveEngine=model.implicit.plan",
            )
        )
        lines += ["", "# implicit quantisation (TensorRT 10 and older):", implicit]
    return "\n".join(lines) + "\n"
