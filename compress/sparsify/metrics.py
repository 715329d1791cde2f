"""What is seen of masks: density, churn, share explored, dead neurons."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def density_of(mask: Tensor) -> float:
    """Share of entries kept; 0.0 where there is none."""
    return int(mask.sum()) / max(mask.numel(), 1)


def churn(before: Tensor, after: Tensor) -> float:
    """Share of the entries kept now that were not kept before; 0.0 where the mask stood still.

    >>> import torch
    >>> churn(torch.tensor([True, True, False]), torch.tensor([True, False, True]))
    0.5
    """
    return int((after & ~before).sum()) / max(int(after.sum()), 1)


def explored_share(explored: Tensor) -> float:
    """Share of entries that were kept at any time (in-time over-parametrisation, Liu 2021).

    Args:
        explored: the union of all masks so far.
    """
    return density_of(explored)


def dead_neurons(mask: Tensor) -> int:
    """Outputs of which no entry is kept: they give their bias alone.

    >>> import torch
    >>> dead_neurons(torch.tensor([[True, False], [False, False]]))
    1
    """
    return int((~mask.flatten(1).any(dim=1)).sum())


def layer_record(mask: Tensor, *, explored: Tensor, churned: float) -> dict[str, Any]:
    """What is kept of one layer at an update."""
    return {
        "density": density_of(mask),
        "churn": churned,
        "explored": explored_share(explored),
        "dead_neurons": dead_neurons(mask),
        "weights": mask.numel(),
    }


def overall_record(step: int, layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over layers, weighted by their sizes; dead neurons are summed.

    Args:
        step: optimizer steps made.
        layers: `layer_record`s by name.
    """
    total = sum(layer["weights"] for layer in layers.values())
    overall = {
        key: sum(layer[key] * layer["weights"] for layer in layers.values()) / total
        for key in ("density", "churn", "explored")
    }
    dead = sum(int(layer["dead_neurons"]) for layer in layers.values())
    return {"step": step, **overall, "dead_neurons": dead, "layers": dict(layers)}
