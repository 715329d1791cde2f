"""What is seen of masks: density, churn, share explored, dead neurons."""

from torch import Tensor


def density_of(mask: Tensor) -> float:
    """Share of entries kept."""
    return int(mask.sum()) / mask.numel()


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
