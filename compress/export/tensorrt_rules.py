"""What TensorRT can build from Q/DQ, as rules over a plan: see `rules.py` for their form."""

from collections.abc import Iterator

import torch

from compress.export.plan import ExportPlan, LayerPlan
from compress.export.rules import Offence, Rule, refusals

INT4_BLOCKS = (64, 128)
WRITTEN = ("Linear", "Embedding")


def tensorrt_kinds(plan: ExportPlan) -> Iterator[Offence]:
    """INT8 or FP8 with one static scale an input, or INT4 weights in blocks of 64 or 128."""
    return refusals(plan, tensorrt_refuses)


def tensorrt_refuses(layer: LayerPlan) -> tuple[str, str] | None:
    """Why TensorRT cannot take this layer's scheme, and the way out; None where it can."""
    weights, inputs = layer.weights, layer.inputs
    if layer.kind == "Embedding":  # `prepare` lets nothing but int8 codes through
        return None
    if weights is None:
        return "TensorRT quantises no inputs without the weights", "Use scheme=W8A8."
    if weights.num_bits < 8 and weights.type == "float":
        return (
            "4-bit floating point needs scales that TensorRT finds as it runs, which Q/DQ with "
            "trained scales cannot say",
            "Use scheme=NVFP4 with target=modelopt, or scheme=FP8.",
        )
    if inputs is None:
        return _refuses_weight_only(layer)
    if inputs.dynamic is not False:
        return (
            "Q/DQ holds one fixed scale for an input, but these find a scale for each token",
            "Use callbacks.qat.activations=static, or target=vllm.",
        )
    if weights.num_bits != 8 or inputs.num_bits != 8 or weights.type != inputs.type:
        return (
            "TensorRT multiplies INT8 by INT8 and FP8 by FP8 alone",
            "Use scheme=W8A8 callbacks.qat.activations=static, or scheme=FP8.",
        )
    if weights.strategy not in ("channel", "tensor"):
        return "TensorRT's 8-bit weights have a scale per channel or tensor", "Use scheme=FP8."
    return None


def _refuses_weight_only(layer: LayerPlan) -> tuple[str, str] | None:
    assert layer.weights is not None
    bits, size = layer.weights.num_bits, layer.weights.group_size
    if bits != 4:
        return (
            f"TensorRT takes weights alone in INT4, not in {bits} bits",
            "Use scheme=W4A16 callbacks.qat.group_size=128, or scheme=W8A8 with "
            "callbacks.qat.activations=static.",
        )
    if size not in INT4_BLOCKS:
        return (
            f"TensorRT's INT4 weights lie in blocks of 64 or 128, not {size or 'whole rows'}",
            "Use callbacks.qat.group_size=64 or 128.",
        )
    return None


def tensorrt_layers(plan: ExportPlan) -> Iterator[Offence]:
    """Q/DQ is written around linear layers, and int8 codes of embeddings are looked up."""
    others = [f"{x.name:<44} {x.kind}" for x in plan.quantized if x.kind not in WRITTEN]
    if others:
        yield Offence(
            reason="Q/DQ is written for linear layers and embeddings alone",
            layers=tuple(others),
            way_out="Exclude these layers.",
        )


def no_quantized_cache(plan: ExportPlan) -> Iterator[Offence]:
    """The exported graph has no key-value cache whose scales it could hold."""
    if plan.kv_cache is not None:
        yield Offence(
            reason="the ONNX graph holds no scales of a key-value cache",
            way_out="Leave the cache unquantised, or use target=vllm.",
        )


def fp32_around(dtype: torch.dtype) -> Rule:
    """Trained scales are fp32, and Q/DQ computes in its scale's dtype."""

    def rule(plan: ExportPlan) -> Iterator[Offence]:
        if dtype != torch.float32:
            word = str(dtype).removeprefix("torch.")
            yield Offence(
                reason=f"Q/DQ would round the trained fp32 scales to {word}",
                way_out="Use export_dtype=float32; let TensorRT choose half precision for the rest "
                "(trtexec --fp16 instead of --stronglyTyped).",
            )

    return rule
