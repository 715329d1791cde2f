"""Which weights are the largest, exactly: the k-th magnitude by two 16-bit histograms.

The bits of a finite float without its sign grow with its magnitude, so they are a sort key. One
histogram of the key's upper half finds the bin of the k-th largest, a second one, of that bin's
lower halves, finds the value. Counts add up over layers, ranks and shards: 2 x 64k integers are
exchanged, never the weights. fp16 and bf16 are widened to fp32, which is exact.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AllReduce = Callable[[Tensor], Tensor]
"""Sums an int64 tensor over ranks and returns the sum."""

HIGH_BINS = 1 << 15
LOW_BINS = 1 << 16
SIGN_OFF = 0x7FFF_FFFF
INFINITY_KEY = 0x7F80_0000
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}  # on a CPU what fits a core's cache, no large temporaries


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The k-th largest magnitude: `key` holds its bits, `ties` how many equal to it are kept."""

    key: int
    ties: int

    @property
    def magnitude(self) -> float:
        """The k-th largest magnitude itself."""
        return float(torch.tensor(self.key, dtype=torch.int32).view(torch.float32))


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Weights spread over ranks: each rank holds one contiguous piece, in the order of ranks."""

    rank: int
    world_size: int
    all_reduce: AllReduce


def magnitude_histogram(weight: Tensor, *, high: int | None = None) -> Tensor:
    """Counts of magnitude keys: of their upper 15 bits, or of the lower 16 within one upper bin.

    Args:
        weight: fp32, bf16 or fp16, any shape.
        high: the upper bin whose lower halves are counted; None counts the upper halves.

    >>> magnitude_histogram(torch.tensor([1.0, -1.0, 2.0])).nonzero().flatten().tolist()
    [16256, 16384]
    """
    counts = torch.zeros(HIGH_BINS if high is None else LOW_BINS, dtype=torch.int64)
    counts = counts.to(weight.device)
    for _, key in _keys(weight):
        upper = key >> 16
        if high is None:
            counts += torch.bincount(upper, minlength=HIGH_BINS)
        else:
            counts += torch.bincount(key[upper == high] & 0xFFFF, minlength=LOW_BINS)
    return counts


def kth_largest(
    weights: Sequence[Tensor], *, kept: int, all_reduce: AllReduce | None = None
) -> Threshold:
    """The `kept`-th largest magnitude of all these tensors together.

    Args:
        weights: one tensor or several, taken as one list.
        kept: how many are kept (over all ranks, with `all_reduce`); 0 keeps none.
        all_reduce: sums histograms over ranks where each holds a part.

    Raises:
        ValueError: `kept` is negative or more than there are, or a weight is not finite.

    >>> kth_largest([torch.tensor([3.0, -1.0, 2.0])], kept=2).magnitude
    2.0
    """
    reduce = all_reduce or (lambda counts: counts)
    counts = reduce(torch.stack([magnitude_histogram(w) for w in weights]).sum(0))
    total, unusable = int(counts.sum()), int(counts[INFINITY_KEY >> 16 :].sum())
    if unusable:
        raise ValueError(f"{unusable} of {total} weights are infinite or not a number")
    if not 0 <= kept <= total:
        raise ValueError(f"cannot keep {kept} of {total} weights")
    if kept == 0:
        return Threshold(key=INFINITY_KEY, ties=0)
    high, kept_in_bin = _bin_of(counts, kept)
    low_counts = torch.stack([magnitude_histogram(w, high=high) for w in weights]).sum(0)
    low, ties = _bin_of(reduce(low_counts), kept_in_bin)
    return Threshold(key=(high << 16) | low, ties=ties)


def keep_largest(
    weights: Sequence[Tensor], *, kept: int, shards: Shards | None = None
) -> list[Tensor]:
    """Boolean masks that keep exactly `kept` weights, the largest by magnitude.

    Ties are broken by place: earlier tensor, then lower rank, then lower index. So every rank that
    sees the same numbers makes the same masks.

    Args:
        weights: tensors of any shape; one mask for each.
        kept: how many `True` in all masks (and ranks) together.
        shards: where each rank holds only a piece of each tensor.

    Raises:
        ValueError: as `kth_largest`.

    >>> keep_largest([torch.tensor([1.0, -1.0, 1.0])], kept=2)[0].tolist()
    [True, True, False]
    """
    threshold = kth_largest(weights, kept=kept, all_reduce=shards.all_reduce if shards else None)
    masks, tied = zip(*(_above(weight, threshold.key) for weight in weights), strict=True)
    for mask, places, quota in zip(
        masks, tied, _tie_quotas(tied, threshold.ties, shards), strict=True
    ):
        mask.view(-1)[places[:quota]] = True
    return list(masks)


def _keys(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(offset, int32 keys) of the flattened weight, in chunks."""
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"magnitudes of {weight.dtype} have no 32-bit key; use fp32, bf16 or fp16")
    flat = weight.detach().reshape(-1)
    size = CHUNK.get(weight.device.type, 1 << 22)
    for offset in range(0, flat.numel(), size):
        yield offset, flat[offset : offset + size].float().view(torch.int32) & SIGN_OFF


def _bin_of(counts: Tensor, kept: int) -> tuple[int, int]:
    """The bin of the `kept`-th largest, and how many of that bin are kept."""
    reached = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(reached, kept))
    before = int(reached[place - 1]) if place else 0
    return counts.numel() - 1 - place, kept - before


def _above(weight: Tensor, key: int) -> tuple[Tensor, Tensor]:
    """Where the magnitude is above the key, and the flat indices where it is equal."""
    mask = torch.empty(weight.numel(), dtype=torch.bool, device=weight.device)
    tied = []
    for offset, keys in _keys(weight):
        torch.gt(keys, key, out=mask[offset : offset + keys.numel()])
        tied.append((keys == key).nonzero().flatten() + offset)
    return mask.view(weight.shape), torch.cat(tied) if tied else mask.new_empty(0, dtype=torch.long)


def _tie_quotas(tied: Sequence[Tensor], ties: int, shards: Shards | None) -> list[int]:
    """How many of its tied places each tensor keeps here, first come, first kept."""
    rank, world_size = (shards.rank, shards.world_size) if shards else (0, 1)
    found = torch.zeros(len(tied), world_size, dtype=torch.int64, device=tied[0].device)
    found[:, rank] = torch.tensor([t.numel() for t in tied], device=found.device)
    if shards:
        found = shards.all_reduce(found)
    before = found.flatten().cumsum(0).view_as(found) - found
    return [int(q) for q in (ties - before).clamp(min=0).minimum(found)[:, rank]]
