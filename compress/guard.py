"""Finding numbers that are none: NaN, infinities, scales at or below zero, losses that jump.

Pure functions on tensors and modules; when to look and what to do then is
`compress.callbacks.NumberGuard`'s.
"""

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


def what_is_wrong(
    loss: float, gradients: Sequence[str], history: Sequence[float], *, spike_factor: float
) -> tuple[str | None, bool]:
    """What is wrong with a step in words, None where nothing is; whether its source is unknown.

    Args:
        loss: of the whole optimizer step.
        gradients: names of parameters whose gradients are no numbers.
        history: losses of the steps before.
        spike_factor: see `is_spike`; 0.0 looks for none.

    >>> what_is_wrong(9.0, [], [1.0] * 16, spike_factor=4.0)
    ('the loss is 9, above 4 times the median before', False)
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}", True
    if gradients:
        named = f"the gradients of {len(gradients)} parameters ({first_names(gradients)})"
        return f"{named} are no numbers", True
    if is_spike(loss, history, factor=spike_factor):
        return f"the loss is {loss:.4g}, above {spike_factor:g} times the median before", False
    return None, False


def why_no_numbers(
    student: nn.Module, batch: Any, terms: Mapping[str, float], *, weights: Sequence[str]
) -> str:
    """The loss terms, the weights and the first layer at fault, found by a forward pass."""
    parts = []
    if bad_terms := [name for name, value in terms.items() if not math.isfinite(value)]:
        parts.append(f"loss terms at fault: {', '.join(bad_terms)}")
    if weights:
        parts.append(f"weights at fault: {first_names(weights)}")
    layer = first_bad_module(student, batch)
    parts.append(
        f"the first layer whose output is no number: {layer}"
        if layer
        else "the forward pass is sound: it arises in the loss or the backward pass"
    )
    return "; ".join(parts)


def drop_step(module: nn.Module, *, scaled: bool) -> None:
    """Leaves gradients with which the optimizer changes nothing.

    Args:
        module: whose parameters they are of.
        scaled: whether a loss scaler makes the step. It fails where there is no gradient at all,
            and passes over a step whose gradients are infinite; an optimizer alone leaves
            parameters without a gradient as they are.
    """
    for parameter in module.parameters():
        infinite = scaled and parameter.requires_grad
        parameter.grad = torch.full_like(parameter, math.inf) if infinite else None


def first_names(names: Sequence[str]) -> str:
    """The first three, and how many more there are.

    >>> first_names(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
