"""How one density is shared out over layers."""

from collections.abc import Mapping, Sequence
from math import prod


def uniform_densities(shapes: Mapping[str, Sequence[int]], *, density: float) -> dict[str, float]:
    """Every layer keeps the same share.

    >>> uniform_densities({"a": (4, 4)}, density=0.5)
    {'a': 0.5}
    """
    return dict.fromkeys(shapes, density)


def erk_densities(shapes: Mapping[str, Sequence[int]], *, density: float) -> dict[str, float]:
    """Erdos-Renyi budgets: density in proportion to sum(shape) / prod(shape) (Evci 2020, RigL).

    Large layers become sparser than small ones; layers that would pass 1.0 stay dense and the
    others pay for them. The parameters kept in all are `density` of the whole.

    Args:
        shapes: weight shapes by layer.
        density: share kept over all layers; 1.0 leaves all dense, towards 0.0 none is capped.

    >>> budget = erk_densities({"wide": (100, 100), "narrow": (10, 10)}, density=0.5)
    >>> budget["narrow"], round(budget["wide"], 4)
    (1.0, 0.495)
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        free = [name for name in shapes if name not in dense]
        to_keep = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        weight = sum(raw[name] * sizes[name] for name in free)
        scale = to_keep / weight if free else 0.0
        over = {name for name in free if raw[name] * scale > 1.0}
        if not over:
            return {name: 1.0 if name in dense else raw[name] * scale for name in shapes}
        dense |= over
