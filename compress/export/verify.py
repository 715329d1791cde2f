"""Reload what was written and compare it with the trained model, before it counts as written."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.errors import ExportMismatch
from compress.export.checkpoint import dense_tensors, read_tensors, stored_scale
from compress.export.codes import expected_codes, step_size, stored_codes
from compress.export.modelopt import as_compressed_tensors
from compress.export.onnx_verify import verify_onnx
from compress.export.plan import ExportPlan, LayerPlan
from compress.export.pt2 import PROGRAM_FILE, held_tensors
from compress.export.pt2_archive import open_program
from compress.export.pt2_verify import compare_program
from compress.export.reload import LARGEST_TOLERANCE, TOLERANCE, compare_logits
from compress.export.tensorrt import ONNX_FILE
from compress.transforms import Stage, weight_before


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was compared and how far it lay apart; made only where everything agreed."""

    max_abs_logit_diff: float | None
    tolerance: float
    codes_equal: bool
    scales_equal: bool
    zeros_equal: bool
    tensors: int
    quantized_layers: int


def verify(
    student: nn.Module,
    folder: str | Path,
    *,
    plan: ExportPlan,
    target: str,
    dtype: torch.dtype,
    example_batch: Mapping[str, Tensor] | None = None,
) -> Verification:
    """Compare the folder with the trained student: tensors, codes, scales, zeros, logits.

    Raises:
        ExportMismatch: anything differs; names the layers and the numbers.
    """
    if target == "modelopt":
        with tempfile.TemporaryDirectory() as twin:
            as_compressed_tensors(student, plan, Path(folder), Path(twin), dtype=dtype)
            return verify(
                student, twin, plan=plan, target="transformers", dtype=dtype,
                example_batch=example_batch,
            )  # fmt: skip
    if target == "tensorrt":
        path = Path(folder) / ONNX_FILE
        gap, tensors = verify_onnx(student, path, plan=plan, batch=example_batch)
        return _agreed(plan, gap=gap, tolerance=LARGEST_TOLERANCE, tensors=tensors)
    if target == "pt2":
        program = open_program(Path(folder) / PROGRAM_FILE)
        tensors = compare_tensors(student, held_tensors(program, plan, student), plan, dtype=dtype)
        gap = compare_program(student, program, plan, dtype=dtype, batch=example_batch)
        return _agreed(plan, gap=gap, tolerance=TOLERANCE, tensors=tensors)
    tensors = verify_tensors(student, folder, plan, dtype=dtype)
    gap = compare_logits(student, folder, plan, dtype=dtype, batch=example_batch)
    return _agreed(plan, gap=gap, tolerance=TOLERANCE, tensors=tensors)


def _agreed(plan: ExportPlan, *, gap: float, tolerance: float, tensors: int) -> Verification:
    return Verification(
        max_abs_logit_diff=gap,
        tolerance=tolerance,
        codes_equal=True,
        scales_equal=True,
        zeros_equal=True,
        tensors=tensors,
        quantized_layers=len(plan.quantized),
    )


@torch.no_grad()
def verify_tensors(
    student: nn.Module, folder: str | Path, plan: ExportPlan, *, dtype: torch.dtype
) -> int:
    """Compare a folder's codes, scales, zeros and dense tensors; the number of tensors.

    Raises:
        ExportMismatch: with every layer that differs and the numbers.
    """
    return compare_tensors(student, read_tensors(folder), plan, dtype=dtype)


@torch.no_grad()
def compare_tensors(
    student: nn.Module, found: Mapping[str, Tensor], plan: ExportPlan, *, dtype: torch.dtype
) -> int:
    """Compare tensors under a checkpoint's names value by value; the number of tensors.

    Raises:
        ExportMismatch: with every layer that differs and the numbers.
    """
    layers = dict(student.named_modules())
    wrong: list[str] = []
    for planned in plan.layers:
        parts = parts_of(found, planned.name)
        wrong += [
            f"{planned.name}: {e}" for e in _layer_errors(layers[planned.name], planned, parts)
        ]
    wrong += _dense_errors(student, plan, found, dtype)
    wrong += [
        f"{key}: the cache's scale differs or is missing"
        for key, value in plan.kv_tensors.items()
        if key not in found or not torch.equal(found[key].float(), value.cpu().float())
    ]
    if wrong:
        raise ExportMismatch(
            f"{len(wrong)} differences between the file and the trained model:\n  "
            + "\n  ".join(wrong)
        )
    return len(found)


def parts_of(found: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """One layer's tensors under local names."""
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in found.items() if key.startswith(prefix)}


def _layer_errors(layer: nn.Module, planned: LayerPlan, parts: Mapping[str, Tensor]) -> list[str]:
    args = planned.weights
    if args is None and "weight" not in parts:
        return ["its weight is missing"]
    errors = _scale_errors(planned, parts)
    if errors or args is None:
        return errors + _zero_errors(planned, parts.get("weight"))
    codes = stored_codes(parts, args)
    expected = expected_codes(_on_cpu(weight_before(layer, Stage.QUANTIZE)), parts, args)
    flipped = int((codes != expected).sum())
    if flipped:
        errors.append(f"{flipped} of {codes.numel()} codes differ from weight and scale")
    used = _on_cpu(layer.weight)  # type: ignore[arg-type]
    distance = (codes * step_size(parts, args, planned.shape) - used).abs().max()
    # one rounding of the product in the dtype the student trains in
    allowed = float(used.abs().max()) * float(torch.finfo(layer.weight.dtype).eps)  # type: ignore[union-attr, arg-type]
    if not distance <= allowed:
        errors.append(f"codes x scale lie {float(distance):.3g} from the trained forward's weight")
    return errors + _zero_errors(planned, codes)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def _scale_errors(planned: LayerPlan, parts: Mapping[str, Tensor]) -> list[str]:
    errors = []
    for key, value in planned.tensors.items():
        base = key.partition("_")[0]
        args = planned.weights if base == "weight" else planned.inputs
        if key.endswith("_zero_point") and (args is None or args.symmetric):
            continue
        if key not in parts:
            errors.append(f"{key} is missing")
            continue
        held = parts[key]
        if held.dtype == torch.uint8 and key == "weight_scale":
            held = torch.exp2(held.float() - 127.0)
        gap = (held.float() - stored_scale(key, value, torch.float32).float()).abs().max()
        if gap != 0:  # NaN too
            errors.append(f"{key} differs by up to {float(gap):.3g}")
    return errors


def _zero_errors(planned: LayerPlan, values: Tensor | None) -> list[str]:
    if planned.mask is None or values is None:
        return []
    alive = int((values[~planned.mask.cpu()] != 0).sum())
    return [f"{alive} masked weights are not zero"] if alive else []


def _dense_errors(
    student: nn.Module, plan: ExportPlan, found: Mapping[str, Tensor], dtype: torch.dtype
) -> list[str]:
    compressed = {layer.name for layer in plan.quantized}
    expected = dense_tensors(student, plan, dtype=dtype)
    names = {k for k in expected if k.rpartition(".")[0] not in compressed or k.endswith(".bias")}
    extra = {k for k in found if k.rpartition(".")[0] not in compressed} - names
    errors = [f"{key}: unexpected" for key in sorted(extra - set(plan.kv_tensors))]
    for key in sorted(names):
        if key not in found:
            errors.append(f"{key}: missing")
        elif found[key].dtype != expected[key].dtype:
            errors.append(f"{key}: {found[key].dtype} instead of {expected[key].dtype}")
        elif not torch.equal(found[key], expected[key]):
            gap = (found[key].float() - expected[key].float()).abs().max()
            errors.append(f"{key}: differs by up to {float(gap):.3g}")
    return errors


def read_config(folder: str | Path) -> dict[str, object]:
    """`config.json` of a checkpoint folder."""
    config: dict[str, object] = json.loads((Path(folder) / "config.json").read_text())
    return config
