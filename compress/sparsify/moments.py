"""What an optimizer remembers of entries that stop or start learning."""

from collections.abc import Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.sharding import gathered, write

SECOND = ("exp_avg_sq", "max_exp_avg_sq")


@torch.no_grad()
def reset_moments(state: MutableMapping[str, Any], *, before: Tensor, after: Tensor) -> None:
    """Clear the moments of entries that left `before` or joined `after`; seed second moments.

    A left entry's moments would go on moving it. A joined entry's second moment is seeded with
    the mean over the entries that stayed: from zero, Adam's first step would be many times too
    long. Works in place on one parameter's state, of Adam or SGD with momentum, sharded or not.

    Args:
        state: `optimizer.state[parameter]`; empty before the first step, then nothing happens.
        before: entries that learned until now.
        after: entries that learn from now on.

    >>> state = {"exp_avg_sq": torch.tensor([2.0, 4.0, 0.0])}
    >>> reset_moments(state, before=torch.tensor([True, True, False]),
    ...               after=torch.tensor([True, False, True]))
    >>> state["exp_avg_sq"].tolist()
    [2.0, 0.0, 2.0]
    """
    stayed, joined = before & after, after & ~before
    for name, moment in state.items():
        if not isinstance(moment, Tensor) or moment.shape != before.shape:
            continue
        whole = gathered(moment).mul_(stayed)
        if name in SECOND and bool(stayed.any()):
            mean = whole.sum(dtype=torch.float32) / stayed.sum()
            whole.masked_fill_(joined, float(mean))
        write(moment, whole)


def state_of(
    optimizers: Iterable[torch.optim.Optimizer], parameter: nn.Parameter | Tensor
) -> MutableMapping[str, Any]:
    """The state that one of these optimizers keeps for `parameter`; empty where none does."""
    for optimizer in optimizers:
        if parameter in optimizer.state:
            state: MutableMapping[str, Any] = optimizer.state[parameter]
            return state
    return {}
