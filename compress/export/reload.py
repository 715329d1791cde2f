"""Logits of a written checkpoint, through transformers, beside those of the trained student."""

import contextlib
import copy
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.errors import ExportMismatch
from compress.export.plan import ExportPlan
from compress.models import config_of
from compress.transforms import InputTransform, WeightTransform, trained_weight, transforms_of

TOLERANCE = 1e-5
"""Largest logit difference in fp32, relative to the largest logit where that exceeds 1."""

FP4_TOLERANCE = 2e-2
"""compressed-tensors unpacks FP4 weights into bf16 (8 bits of mantissa), in any model."""


def tolerance_of(plan: ExportPlan) -> float:
    """How far logits may lie apart: fp32 rounding, or bf16's where the loader unpacks into bf16."""
    fp4 = any(
        x.weights and x.weights.type == "float" and x.weights.num_bits < 8 for x in plan.quantized
    )
    return FP4_TOLERANCE if fp4 else TOLERANCE


@torch.no_grad()
def compare_logits(
    student: nn.Module,
    folder: str | Path,
    plan: ExportPlan,
    *,
    dtype: torch.dtype,
    batch: Mapping[str, Tensor] | None = None,
) -> float:
    """Largest difference of logits; both models compute in fp32 on the student's device.

    Tensors that are not quantised are rounded to `dtype` on both sides, so the comparison is exact
    for a bf16 export too. Buffers such as the RoPE frequencies stay fp32 on both sides.

    Raises:
        ExportMismatch: keys are missing, unexpected or misshapen, or logits lie too far apart.
    """
    device = next(student.parameters()).device
    inputs = _inputs(student, batch, device)
    expected = _logits(rounded_copy(student, dtype), inputs)
    actual = _logits(reload_model(folder, type(student)).to(device), inputs)
    if expected.shape != actual.shape:
        raise ExportMismatch(f"logits {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    gap = float((expected - actual).abs().max())
    allowed = tolerance_of(plan) * max(1.0, float(expected.abs().max()))
    if not gap <= allowed:
        raise ExportMismatch(f"reloaded logits differ by up to {gap:.3g}; allowed {allowed:.3g}")
    return gap


def _inputs(
    student: nn.Module, batch: Mapping[str, Tensor] | None, device: torch.device
) -> dict[str, Tensor]:
    if batch is None:
        config = config_of(student)
        generator = torch.Generator().manual_seed(0)
        length = min(32, int(getattr(config, "max_position_embeddings", 32)))
        tokens = torch.randint(0, int(config.vocab_size), (2, length), generator=generator)
        batch = {"input_ids": tokens}
    kept = ("input_ids", "attention_mask", "token_type_ids")
    return {key: batch[key].to(device) for key in kept if key in batch}


def _logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    training = model.training
    model.eval()
    with torch.autocast(next(model.parameters()).device.type, enabled=False), quiet():
        logits: Tensor = model(**inputs).logits.float()
    model.train(training)
    return logits


@torch.no_grad()
def rounded_copy(student: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The student in fp32, with every unquantised parameter rounded to `dtype`."""
    copied = copy.deepcopy(student).float()
    for layer in copied.modules():
        chain = transforms_of(layer)
        if chain and all(t.scheme().kind != "quantize" for t in chain):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    kept = _exact_parameters(copied)
    for parameter in copied.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype).float()
    return copied


def _exact_parameters(model: nn.Module) -> set[int]:
    """Parameters that the export does not round: quantised weights and all that quantisers own."""
    exact: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, WeightTransform | InputTransform):
            exact |= {id(parameter) for parameter in layer.parameters()}
        elif transforms_of(layer):
            exact.add(id(trained_weight(layer)))
    return exact


def reload_model(folder: str | Path, kind: type[nn.Module]) -> nn.Module:
    """The checkpoint through transformers' own loader, in fp32.

    Raises:
        ExportMismatch: the loader found keys missing, unexpected or misshapen.
    """
    import transformers

    causal = kind.__name__.endswith("ForCausalLM")
    loader: Any = transformers.AutoModelForCausalLM if causal else kind
    with quiet():
        model, info = loader.from_pretrained(
            str(folder), dtype=torch.float32, output_loading_info=True
        )
    wrong = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if wrong:
        listed = "\n".join(f"  {key}: {', '.join(names)}" for key, names in wrong.items())
        raise ExportMismatch(f"transformers does not load the checkpoint whole:\n{listed}")
    loaded: nn.Module = model
    return loaded


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of other packages; an exception still comes through."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
