"""Refuses, before training, what the target cannot load, serve or speed up."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from compress.errors import UnsupportedScheme, did_you_mean
from compress.export import pt2_rules, rules, tensorrt_rules
from compress.export.plan import ExportPlan, collect_plan
from compress.export.schemes import plan_name, scheme_name
from compress.export.sparsity import faster_in, speed_note

Purpose = Literal["speed", "size"]

_COMPRESSED_TENSORS = (rules.groups_divide, rules.symmetric_weights, rules.head_is_free)
RULES: Mapping[str, Sequence[rules.Rule]] = {
    "vllm": (
        *_COMPRESSED_TENSORS,
        rules.fused_layers_agree,
        rules.linear_layers_only(
            reason="vLLM quantises linear layers alone",
            way_out="Exclude these layers, or use target=transformers.",
        ),
        rules.schemes_have_kernels,
        rules.uniform_shapes,
    ),
    "transformers": (*_COMPRESSED_TENSORS, rules.uniform_shapes),
    "modelopt": (
        rules.modelopt_kinds,
        rules.groups_divide,
        rules.head_is_free,
        rules.fused_layers_agree,
        rules.uniform_shapes,
    ),
    # no uniform_shapes: a graph holds every layer's own
    "tensorrt": (
        tensorrt_rules.tensorrt_kinds,
        tensorrt_rules.tensorrt_layers,
        tensorrt_rules.no_quantized_cache,
        rules.groups_divide,
        rules.symmetric_weights,
    ),
    "pt2": (*_COMPRESSED_TENSORS, pt2_rules.integer_codes, pt2_rules.no_quantized_cache),
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate is open; `notes` are what the user should know before training."""

    target: str
    scheme: str
    notes: tuple[str, ...] = ()


def gate(
    student_or_plan: nn.Module | ExportPlan,
    *,
    target: str,
    purpose: Purpose = "size",
    dtype: torch.dtype | None = None,
) -> Verdict:
    """Check that `target` can serve what will be trained; call it once transforms are attached.

    Args:
        student_or_plan: a model with its transforms attached, or its plan.
        target: `vllm`, `transformers`, `modelopt`, `tensorrt` or `pt2`.
        purpose: `speed` refuses sparsity that the target cannot run faster; `size` notes it.
        dtype: of the export; None leaves unchecked what depends on it.

    Raises:
        UnsupportedScheme: with every offence: the reason, the layers and the way out.
    """
    known = sorted(RULES)
    if target not in RULES:
        hint = did_you_mean(target, known)
        raise UnsupportedScheme(f"target={target!r} is unknown.{hint} Targets: {', '.join(known)}")
    if purpose not in ("speed", "size"):
        hint = did_you_mean(purpose, ["speed", "size"])
        raise UnsupportedScheme(f"purpose={purpose!r} is unknown.{hint} Use speed or size.")
    plan = student_or_plan
    if isinstance(plan, nn.Module):
        plan = collect_plan(plan, trained=False)
    asked = [*RULES[target], *_asked_for(target, purpose, dtype)]
    offences = [offence for rule in asked for offence in rule(plan)]
    if offences:
        listed = "\n".join(str(offence) for offence in offences)
        raise UnsupportedScheme(f"target={target} cannot serve this plan.\n{listed}")
    return Verdict(target=target, scheme=plan_name(plan), notes=tuple(_notes(plan, target)))


def _asked_for(target: str, purpose: Purpose, dtype: torch.dtype | None) -> Iterator[rules.Rule]:
    if purpose == "speed":
        yield rules.zeros_pay_in(target)
    if target == "vllm" and dtype is not None:
        yield rules.scales_fit(dtype)
    if target == "tensorrt" and dtype is not None:
        yield tensorrt_rules.fp32_around(dtype)


def _notes(plan: ExportPlan, target: str) -> Iterator[str]:
    names = {scheme_name(layer.weights, layer.inputs) for layer in plan.quantized}
    if target == "vllm" and "W8A16" in names:
        yield "W8A16: vLLM serves it on GPUs; there is no CPU kernel."
    if target == "vllm" and any(x.inputs and x.inputs.dynamic is False for x in plan.quantized):
        yield "Static input scales: vLLM's CPU backend on AMX runs them as dynamic ones."
    if target == "pt2" and plan.quantized:
        yield "pt2: integers in the file; PyTorch multiplies floats, at the dense model's speed."
    if plan.sparse and target not in faster_in(plan):
        yield speed_note(plan)
