"""Layers that the runtime loads as one matrix (q/k/v, gate/up), and what they must share."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from compressed_tensors.quantization import QuantizationScheme
from torch import nn

from compress.errors import UnsupportedScheme
from compress.quantize.inputs import QuantizeInput, Shared
from compress.quantize.transforms import QuantizeWeight
from compress.transforms import INPUT_QUANTIZER, transforms_of

FUSIONS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),  # BERT and its kin
)
"""Last names of sibling layers that vLLM and TensorRT-LLM merge into one matrix product."""


def fusions(model: nn.Module, names: Iterable[str]) -> list[list[str]]:
    """The sets of two or more of `names` that the runtime loads as one matrix."""
    known, found = set(names), []
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in names):
        for group in FUSIONS:
            siblings = [f"{parent}.{last}".lstrip(".") for last in group]
            present = [name for name in siblings if name in known]
            if len(present) > 1:
                found.append(present)
    return found


def weight_quantizer(layer: nn.Module) -> QuantizeWeight | None:
    """The layer's weight quantiser, if it has one."""
    return next((t for t in transforms_of(layer) if isinstance(t, QuantizeWeight)), None)


def input_quantizer(layer: nn.Module) -> QuantizeInput | None:
    """The layer's input quantiser, if it has one."""
    found = dict(layer.named_children()).get(INPUT_QUANTIZER)
    return found if isinstance(found, QuantizeInput) else None


def quantizers(model: nn.Module) -> Iterator[QuantizeWeight | QuantizeInput]:
    """Every quantiser of a model, of weights, inputs, keys and values."""
    for part in model.modules():
        if isinstance(part, QuantizeWeight | QuantizeInput):
            yield part


def tie_fused(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """`tie` for every fused set among `layers`."""
    for names in fusions(model, layers):
        tie([layers[name] for name in names])


def tie(layers: list[nn.Module]) -> None:
    """Give fused layers one scale where the runtime keeps one: NVFP4's global, per-tensor ones."""
    weights = [w for layer in layers if (w := weight_quantizer(layer)) is not None]
    if weights and weights[0].global_scale is not None:
        smallest = torch.stack(
            [w.global_scale for w in weights if w.global_scale is not None]
        ).amin(0)
        for weight in weights:
            assert weight.global_scale is not None
            weight.global_scale.copy_(smallest)
    if weights and weights[0].args.strategy == "tensor":
        largest = torch.stack([w.base_scale for w in weights]).amax(0)
        for weight in weights:
            weight.set_scale(largest)
            weight.log_step = weights[0].log_step  # one parameter: learned together
    inputs = [q for layer in layers if (q := input_quantizer(layer)) is not None]
    shared = Shared(len(inputs))
    for quantizer in inputs if len(inputs) == len(layers) > 1 else ():
        quantizer.log_step, quantizer.shared = inputs[0].log_step, shared


def check_fused(
    fused: list[list[str]], schemes: Mapping[str, QuantizationScheme], *, scales: str
) -> None:
    """Refuse fused sets that could not be loaded as one matrix.

    Raises:
        UnsupportedScheme: their schemes differ, or they would track scales that must be equal.
    """
    mixed = [n for n in fused if any(schemes[m] != schemes[n[0]] for m in n[1:])]
    if mixed:
        raise UnsupportedScheme(
            "the runtime loads these layers as one matrix, but their schemes differ:\n"
            f"{_listed(mixed)}\nGive q/k/v one scheme, and gate/up one"
        )
    torn = [n for n in fused if schemes[n[0]].weights.strategy == "tensor"]
    if scales == "tracked" and torn:
        raise UnsupportedScheme(
            "scales=tracked follows each layer, but the runtime keeps one scale for all of\n"
            f"{_listed(torn)}\nUse scales=learned or scales=fixed, or scheme=FP8_DYNAMIC"
        )


def _listed(sets: list[list[str]]) -> str:
    return "\n".join(f"  {', '.join(names)}" for names in sets)
