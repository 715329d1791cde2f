"""What a `torch.export` program of integer codes can hold, as rules over a plan: see `rules.py`."""

from collections.abc import Iterator

from compress.export.plan import ExportPlan, LayerPlan
from compress.export.rules import Offence, refusals

WRITTEN = ("Linear", "Embedding")
ELSEWHERE = "Use target=vllm, or an integer scheme: W8A8, W8A16, W4A16, W4A8, W3A16 or W2A16."


def integer_codes(plan: ExportPlan) -> Iterator[Offence]:
    """Integer weights, scales per channel, tensor or group; inputs likewise per token or tensor."""
    return refusals(plan, pt2_refuses)


def pt2_refuses(layer: LayerPlan) -> tuple[str, str] | None:
    """Why the program cannot hold this layer's scheme, and the way out; None where it can."""
    weights, inputs = layer.weights, layer.inputs
    if layer.kind not in WRITTEN:
        return "codes are written for linear layers and embeddings alone", "Exclude these layers."
    if weights is None:
        return "the program quantises no inputs without the weights", "Use scheme=W8A8."
    if weights.type != "int" or (inputs is not None and inputs.type != "int"):
        return "the program holds integer codes, not FP8 or FP4", ELSEWHERE
    if weights.strategy not in ("channel", "tensor", "group"):
        return "weights have a scale per channel, tensor or group", ELSEWHERE
    if inputs is None:
        return None
    if not inputs.symmetric:
        return "inputs are rounded around zero, without a zero point", "Use symmetric=true."
    kept = "tensor" if inputs.dynamic is False else "token"
    if inputs.strategy != kept:
        return "inputs have one static scale, or one a token", ELSEWHERE
    return None


def no_quantized_cache(plan: ExportPlan) -> Iterator[Offence]:
    """A pass over the program keeps no keys and values whose scales it could hold."""
    if plan.kv_cache is not None:
        yield Offence(
            reason="the program keeps no key-value cache, and so none of its scales",
            way_out="Leave the cache unquantised (kv_cache=null), or use target=vllm.",
        )
