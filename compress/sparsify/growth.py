"""One update of masks: which cells survive, which come back. All in cells of a pattern."""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from compress.sparsify.masks import Masks, Pattern, keep_among


def random_scores(shape: Sequence[int], *, seed: int, step: int, layer: str) -> Tensor:
    """Scores in [0, 1) that depend on seed, step and layer alone: every rank and resume agrees.

    >>> first = random_scores((2, 2), seed=0, step=1, layer="a")
    >>> first.equal(random_scores((2, 2), seed=0, step=1, layer="a"))
    True
    """
    digest = blake2b(f"{seed}/{step}/{layer}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.rand(tuple(shape), generator=generator)


def regrow(
    pattern: Pattern,
    *,
    magnitudes: Sequence[Tensor],
    alive: Masks,
    growth_scores: Sequence[Tensor | None] | None,
    density: float,
    share: float,
) -> Masks:
    """Drop the smallest kept cells, then bring back those of the highest growth score.

    `share` of the kept is dropped, of those already alive alone; then the highest scores among all
    that do not survive fill up to exactly `density` (RigL, Evci 2020, section 3; SET with random
    scores). A cell just dropped may come back at once.

    Args:
        pattern: what the masks keep to.
        magnitudes: cells of the weights.
        alive: the masks by cells, before.
        growth_scores: non-negative, by cells; None (for all, or for one tensor) prunes without
            growth.
        density: share of cells kept afterwards.
        share: 0.0 exchanges nothing, 1.0 exchanges all.
    """
    survivors = pattern.choose(magnitudes, density=_reachable(pattern, alive, density), among=alive)
    scores = {i: s for i, s in enumerate(growth_scores or ()) if s is not None}
    if not scores:
        return survivors
    standing = sum(int(s.sum()) for i, s in enumerate(survivors) if i not in scores)
    exchanged = _exchange(
        pattern,
        magnitudes=[magnitudes[i] for i in scores],
        survivors=[survivors[i] for i in scores],
        growth_scores=list(scores.values()),
        kept=pattern.kept_cells(magnitudes, density) - standing,
        density=density,
        share=share,
    )
    for index, mask in zip(scores, exchanged, strict=True):
        survivors[index] = mask
    return survivors


def _exchange(
    pattern: Pattern,
    *,
    magnitudes: Sequence[Tensor],
    survivors: Masks,
    growth_scores: Sequence[Tensor],
    kept: int,
    density: float,
    share: float,
) -> Masks:
    # where other tensors stand, these may be too small for all that is missing there
    kept = min(kept, sum(m.numel() for m in magnitudes))
    strongest = min(sum(int(s.sum()) for s in survivors), kept - int(share * kept))
    survivors = keep_among(magnitudes, kept=strongest, among=survivors)
    if pattern.group > 1:  # survivors first, then the best of each group
        first = [g.masked_fill(s, torch.inf) for g, s in zip(growth_scores, survivors, strict=True)]
        return pattern.choose(first, density=density)
    grown = keep_among(growth_scores, kept=kept - strongest, among=[~s for s in survivors])
    return [s | g for s, g in zip(survivors, grown, strict=True)]


def _reachable(pattern: Pattern, alive: Masks, density: float) -> float:
    """The density, or what is alive where that is less."""
    if pattern.group > 1:
        return density
    total = sum(a.numel() for a in alive)
    return min(density, sum(int(a.sum()) for a in alive) / total)
