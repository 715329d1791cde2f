"""Finding numbers that are none: NaN, infinities, scales at or below zero, losses that jump.

Pure functions on tensors and modules; when to look and what to do then is
`compress.callbacks.NumberGuard`'s.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from compress.contract import Batch
from compress.errors import CompressError
from compress.sharding import local

FEWEST_FOR_SPIKES = 8
"""Losses that must be known before one can be called a spike."""


class NumbersFailed(CompressError):
    """A loss, gradient, weight or scale is no number; nothing was saved after it."""


def not_finite(named: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity; one pass over all where none does.

    Of sharded tensors this rank's share is looked at.

    >>> not_finite([("a", torch.ones(2)), ("b", torch.tensor([1.0, float("nan")])), ("c", None)])
    ['b']
    """
    held = [(name, local(t.detach())) for name, t in named if t is not None]
    pairs = [(name, t) for name, t in held if _is_checked(t)]
    if not pairs:
        return []
    # the largest magnitude: a sum of squares would overflow where every number is sound
    largest = torch.nn.utils.get_total_norm([t for _, t in pairs], norm_type=math.inf)
    if bool(torch.isfinite(largest)):
        return []
    return [name for name, t in pairs if not bool(torch.isfinite(t).all())]


def _is_checked(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize >= 2 and tensor.numel() > 0


def bad_gradients(module: nn.Module) -> list[str]:
    """Parameters whose gradient holds NaN or an infinity, the one nearest the loss first."""
    return not_finite((name, p.grad) for name, p in module.named_parameters())[::-1]


def bad_weights(module: nn.Module) -> list[str]:
    """Parameters and buffers that hold NaN or an infinity, and scales at or below zero.

    A scale that waits for its calibration (the dense phase before `start_step`) is none yet.
    """
    named = [*module.named_parameters(), *module.named_buffers()]
    waiting = {f"{n}.base_scale" for n, m in module.named_modules() if not getattr(m, "ready", 1)}
    scales = [(n, t) for n, t in named if n.endswith("base_scale") and n not in waiting]
    below = [f"{name} (at or below 0)" for name, s in scales if bool((s <= 0).any())]
    return not_finite(named) + below


@torch.no_grad()
def first_bad_module(model: nn.Module, batch: Batch) -> str | None:
    """The first module, in the order of the forward pass, whose output is no number.

    None where the forward pass is sound and the fault arises in the loss or in the backward pass.
    Random numbers that it draws are given back.
    """
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [t for t in _tensors_in(output) if _is_checked(t)]
            if not found and not all(bool(torch.isfinite(t).all()) for t in tensors):
                found.append(name)

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in model.named_modules() if name]
    inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
    try:
        with torch.random.fork_rng():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors_in(output: Any) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors_in(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from _tensors_in(value)


def is_spike(loss: float, history: Sequence[float], *, factor: float) -> bool:
    """Whether a loss exceeds `factor` times the median of those before it.

    Args:
        loss: of this step.
        history: of the steps before; fewer than `FEWEST_FOR_SPIKES` never make a spike.
        factor: 0.0 finds none; 1.0 and a little more finds many.

    >>> is_spike(9.0, [2.0] * 8, factor=3.0), is_spike(5.0, [2.0] * 8, factor=3.0)
    (True, False)
    """
    if factor <= 0 or len(history) < FEWEST_FOR_SPIKES:
        return False
    return loss > factor * median(history)


class Snapshot:
    """A model and its optimizers as they were, kept in memory."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Copies everything: as many bytes again as weights and optimizer hold."""
        self.model = {name: t.detach().clone() for name, t in model.state_dict().items()}
        self.optimizers = [copy.deepcopy(o.state_dict()) for o in optimizers]

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Puts everything back but learning rates and the like; gradients are dropped."""
        model.load_state_dict(self.model)
        for optimizer, state in zip(optimizers, self.optimizers, strict=True):
            now = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
            optimizer.load_state_dict(copy.deepcopy(state))
            # their schedules go on from where they are; some only multiply what they find
            for group, settings in zip(optimizer.param_groups, now, strict=True):
                group.update(settings)
            optimizer.zero_grad(set_to_none=True)
