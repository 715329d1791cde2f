"""Which layers may be masked: those that learn, by a gradient that the masks can read."""

from torch import nn

from compress.errors import BadInput
from compress.transforms import Stage, trained_weight, transforms_of


def learning(layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Those that are trained, by their weight or by an adapter; a frozen one keeps its weight.

    Raises:
        BadInput: none is left.
    """
    adapted = any(t.stage == Stage.ADAPT for m in layers.values() for t in transforms_of(m))
    # adapters freeze everything else too, which says nothing of a layer
    kept = {n: m for n, m in layers.items() if adapted or trained_weight(m).requires_grad}
    if not kept:
        raise BadInput(
            f"all {len(layers)} layers to mask are frozen (requires_grad=False), the first is "
            f"{next(iter(layers))}: let them learn, or choose others by include="
        )
    return kept


def refuse_adapters(layers: dict[str, nn.Module]) -> None:
    """Refuse growth by the gradient of weights that an adapter froze.

    Raises:
        BadInput: with the two ways out.
    """
    adapted = [
        n for n, m in layers.items() if any(t.stage == Stage.ADAPT for t in transforms_of(m))
    ]
    if adapted:
        raise BadInput(
            f"growth=gradient reads the gradients of weights, but adapters train in place of "
            f"{len(adapted)} of the {len(layers)} masked ones, the first is {adapted[0]}: use "
            "growth=magnitude, or the quantiser's adapter_rank=0"
        )
