"""Which widths stay: sizes from densities, indices from importance. Plain data.

Legend: F feed-forward channels, Q query heads, K key-value heads, H hidden width.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from compress.errors import BadInput, UnsupportedScheme
from compress.prune.importance import Importance
from compress.prune.structure import Structure

Indices = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PruneSizes:
    """How much stays of each width; every layer keeps the same, as every runtime demands.

    Args:
        ffn_density: share of feed-forward channels kept; 1.0 keeps all.
        heads_density: share of query heads kept within each KV group (at least one); a model with
            one query head a group has nothing to give here: use `kv_density`.
        kv_density: share of KV groups kept, each with all its query heads (at least one).
        hidden_density: share of the hidden width kept.
        layers: whole layers kept; None keeps all.
        round_to: kept channels (feed-forward, hidden) are a multiple of this: 32, 64 or 128 for
            fast kernels; 1 takes any number.
        block: channels are kept or dropped in runs of this many neighbours; a quantiser's
            `group_size` must divide it where both train at once.
    """

    ffn_density: float = 1.0
    heads_density: float = 1.0
    kv_density: float = 1.0
    hidden_density: float = 1.0
    layers: int | None = None
    round_to: int = 32
    block: int = 1

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            BadInput: a density outside (0, 1], or `round_to` no multiple of `block`.
        """
        densities = {k: v for k, v in asdict(self).items() if k.endswith("density")}
        bad = {k: v for k, v in densities.items() if not 0.0 < v <= 1.0}
        if bad:
            raise BadInput(f"densities must be in (0, 1]: {bad}")
        if self.round_to < 1 or self.block < 1 or self.round_to % self.block:
            raise BadInput(
                f"round_to={self.round_to} must be a multiple of block={self.block}, both >= 1"
            )

    def check(self, structure: Structure) -> None:
        """Refuse what this model cannot give.

        Raises:
            UnsupportedScheme: with the reason and the way out.
        """
        for problem in _problems(self, structure):
            raise UnsupportedScheme(problem)

    def kept_channels(self, size: int, density: float) -> int:
        """Channels kept: the nearest multiple of `round_to`, at least one, at most all.

        >>> PruneSizes(round_to=32).kept_channels(128, 0.6)
        64
        """
        if density == 1.0:
            return size
        nearest = max(1, round(density * size / self.round_to)) * self.round_to
        return min(size, nearest)


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """Indices kept, in the dense model's numbering; lists by layer cover all dense layers."""

    layers: Indices
    ffn: tuple[Indices, ...]
    heads: tuple[Indices, ...]
    kv_heads: tuple[Indices, ...]
    hidden: Indices

    def check(self) -> None:
        """Refuse widths that differ between layers.

        Raises:
            UnsupportedScheme: lists the widths found.
        """
        for part in ("ffn", "heads", "kv_heads"):
            widths = sorted({len(getattr(self, part)[layer]) for layer in self.layers})
            if len(widths) != 1:
                raise UnsupportedScheme(
                    f"{part} would keep {widths} in different layers: config.json has one number "
                    "for all, so no runtime loads it. Keep the same everywhere, or drop whole layers"  # noqa: E501
                )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for reports."""
        return asdict(self)


def dense_plan(structure: Structure) -> PrunePlan:
    """The plan that keeps all."""
    count = len(structure.layers)
    return PrunePlan(
        layers=tuple(range(count)),
        ffn=(tuple(range(structure.ffn)),) * count,
        heads=(tuple(range(structure.heads)),) * count,
        kv_heads=(tuple(range(structure.kv_heads)),) * count,
        hidden=tuple(range(structure.hidden)),
    )


def make_plan(structure: Structure, importance: Importance, sizes: PruneSizes) -> PrunePlan:
    """The most important of each width; ties by index, so that equal scores give equal plans.

    Whether the model can give what is asked is `PruneSizes.check`'s to say: on the way to their
    final number, heads may stand at numbers that no configuration could hold.
    """
    ffn = sizes.kept_channels(structure.ffn, sizes.ffn_density)
    hidden = sizes.kept_channels(structure.hidden, sizes.hidden_density)
    groups = _at_least_one(structure.kv_heads, sizes.kv_density)
    per_group = _at_least_one(structure.queries_per_group, sizes.heads_density)
    count = len(structure.layers)
    kv_heads, heads = [], []
    for scores_Q in importance.heads:
        scores_KG = scores_Q.view(structure.kv_heads, -1)
        kept_groups = largest(scores_KG.sum(1), groups)
        kv_heads.append(kept_groups)
        heads.append(
            tuple(
                group * structure.queries_per_group + head
                for group in kept_groups
                for head in largest(scores_KG[group], per_group)
            )
        )
    plan = PrunePlan(
        layers=largest(importance.layers, count if sizes.layers is None else sizes.layers),
        ffn=tuple(largest(scores_F, ffn, block=sizes.block) for scores_F in importance.ffn),
        heads=tuple(heads),
        kv_heads=tuple(kv_heads),
        hidden=largest(importance.hidden, hidden, block=sizes.block),
    )
    plan.check()
    return plan


def widths_of(plan: PrunePlan) -> dict[str, int]:
    """How many of each stay (in the first layer that stays; a plan's layers are alike)."""
    first = plan.layers[0]
    return {
        "layers": len(plan.layers),
        "ffn": len(plan.ffn[first]),
        "heads": len(plan.heads[first]),
        "kv_heads": len(plan.kv_heads[first]),
        "hidden": len(plan.hidden),
    }


def largest(scores: Tensor, kept: int, *, block: int = 1) -> Indices:
    """Indices of the `kept` highest scores in rising order, in runs of `block` neighbours.

    >>> largest(torch.tensor([1.0, 9.0, 5.0, 5.0]), 2)
    (1, 2)
    >>> largest(torch.tensor([1.0, 9.0, 5.0, 6.0]), 2, block=2)
    (2, 3)
    """
    by_block = scores.float().view(-1, block).sum(1)
    chosen = by_block.sort(descending=True, stable=True).indices[: kept // block].sort().values
    offsets = torch.arange(block, device=scores.device)
    return tuple((chosen[:, None] * block + offsets).flatten().tolist())


def _at_least_one(size: int, density: float) -> int:
    return max(1, round(density * size))


def _problems(sizes: PruneSizes, structure: Structure) -> list[str]:
    found = []
    encoder = structure.layers[0].queries is None
    if encoder and (sizes.heads_density < 1.0 or sizes.kv_density < 1.0):
        found.append(
            f"{structure.model_type}: its configuration ties the head width to hidden_size / heads, "  # noqa: E501
            "so fewer heads cannot be written down; prune ffn_density or layers instead"
        )
    if sizes.heads_density < 1.0 and structure.queries_per_group == 1 and not encoder:
        found.append(
            f"heads_density={sizes.heads_density}, but each KV group has one query head: "
            "use kv_density to drop whole heads"
        )
    if sizes.hidden_density < 1.0 and not structure.hidden_family:
        found.append(f"{structure.model_type}: its hidden width cannot be cut exactly")
    if sizes.layers is not None and not 1 <= sizes.layers <= len(structure.layers):
        found.append(f"layers={sizes.layers} of a model with {len(structure.layers)} layers")
    for name, size in (("ffn", structure.ffn), ("hidden", structure.hidden)):
        cut = getattr(sizes, f"{name}_density") < 1.0
        if cut and (size % sizes.block or size < sizes.round_to):
            found.append(
                f"{name} width {size}: not divisible by block={sizes.block}, "
                f"or below round_to={sizes.round_to}"
            )
    return found + _heads_must_divide(sizes, structure)


def _heads_must_divide(sizes: PruneSizes, structure: Structure) -> list[str]:
    """Llama's configuration refuses a hidden size that the heads do not divide."""
    groups = _at_least_one(structure.kv_heads, sizes.kv_density)
    heads = groups * _at_least_one(structure.queries_per_group, sizes.heads_density)
    hidden = sizes.kept_channels(structure.hidden, sizes.hidden_density)
    if structure.model_type != "llama" or hidden % heads == 0:
        return []
    return [
        f"{heads} heads do not divide the hidden width {hidden}, and a Llama configuration refuses "
        "that: choose heads_density, kv_density and hidden_density so that they do"
    ]
