"""A folder that `trtexec` turns into an engine: ONNX with Q/DQ, its commands, its configuration."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.errors import BadInput
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

BATCH, LENGTH = 8, 2048
"""The largest input of an engine where none is named: the builder sets memory aside for it."""


def write_tensorrt(
    student: nn.Module,
    plan: ExportPlan,
    folder: Path,
    *,
    dtype: torch.dtype,
    calibration: bool = False,
    cache: bool = False,
    batch: int | None = None,
    length: int | None = None,
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
        batch: sequences at once that `trtexec.sh` builds for; see `largest_input`.
        length: tokens of each, past and new.

    Raises:
        UnsupportedModel: PyTorch cannot export the model, or it has no such cache.
        BadInput: an ONNX package is missing, or `length` is over the model's limit.
    """
    most = largest_input(plan.config, batch=batch, length=length)
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
    script = commands(plan, most=most, calibration=calibration, cache=held)
    (folder / COMMANDS_FILE).write_text(script)
    return files


def largest_input(
    config: Any, *, batch: int | None = None, length: int | None = None
) -> tuple[int, int]:
    """Sequences and tokens of each that an engine takes at most.

    Args:
        config: of the model; its `max_position_embeddings` are the limit of `length`.
        batch: None takes 8. The builder sets memory aside for all of them, however long.
        length: None takes the model's limit, but no more than 2048.

    Raises:
        BadInput: `length` is over the model's limit.
    """
    limit = int(getattr(config, "max_position_embeddings", None) or length or LENGTH)
    if (length or 0) > limit:
        raise BadInput(f"length={length}, but the model takes {limit} tokens")
    return batch or BATCH, length or min(limit, LENGTH)


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


def profiles(batch: int, length: int, *, cache: CacheShape | None = None) -> list[str]:
    """What an engine is built for, in `trtexec`'s words: the least, usual and largest input.

    With a cache these are two profiles: 0 for one token after a past, 1 for whole prompts without
    one. A single profile for both would reach over twice the positions.
    """
    rows, usual = min(8, batch), min(128, length)
    if cache is None:
        return _profile(shapes(1, 1), shapes(rows, usual), shapes(batch, length))
    before, longest = min(usual, length - 1), length - 1
    steps = [(1, 0), (rows, before), (batch, longest)]
    prompts = [(1, 1), (rows, usual), (batch, length)]
    return [
        "--profile=0", *_profile(*(shapes(n, 1, past=past, cache=cache) for n, past in steps)),
        "--profile=1", *_profile(*(shapes(n, new, cache=cache) for n, new in prompts)),
    ]  # fmt: skip


def _profile(least: str, usual: str, most: str) -> list[str]:
    return [f"--minShapes={least}", f"--optShapes={usual}", f"--maxShapes={most}"]


def commands(
    plan: ExportPlan, *, most: tuple[int, int], calibration: bool, cache: CacheShape | None = None
) -> str:
    """The `trtexec` commands as a shell script; the sparse one runs where zeros are 2:4."""
    build = ["trtexec --onnx=model.onnx --stronglyTyped", *profiles(*most, cache=cache)]
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
