"""Which rows take which path: a table of what paths are worth, and a choice of fixed size.

Legend: B sequences, P paths, Q difficulty bins.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compress.errors import BadInput, did_you_mean

ROUTERS = ("difficulty", "random", "hardest", "easiest", "full")


class ValueTable:
    """Running mean worth (nats a token) of each path in each difficulty bin, from audits.

    Args:
        paths: their names.
        bins: difficulty bins, by rank in the batch.
        decay: of the running means, a measured row; near 1.0 remembers long.
    """

    def __init__(self, *, paths: Sequence[str], bins: int, decay: float = 0.95) -> None:
        self.paths, self.bins, self.decay = tuple(paths), bins, decay
        self.sums_PQ = torch.zeros(len(self.paths), bins, dtype=torch.float64)
        self.counts_PQ = torch.zeros(len(self.paths), bins, dtype=torch.float64)

    def update(self, sums_PQ: Tensor, counts_PQ: Tensor) -> None:
        """Take in the rows that one step audited (already summed over ranks).

        A cell whose sum is no number counts as not audited.
        """
        sound_PQ = torch.isfinite(sums_PQ)
        sums_PQ, counts_PQ = sums_PQ.where(sound_PQ, 0.0), counts_PQ.where(sound_PQ, 0.0)
        keep = torch.where(counts_PQ > 0, self.decay**counts_PQ, 1.0)
        self.sums_PQ = self.sums_PQ * keep + sums_PQ
        self.counts_PQ = self.counts_PQ * keep + counts_PQ

    def values_PQ(self) -> Tensor:
        """Mean worth; NaN where nothing was measured yet."""
        return self.sums_PQ / self.counts_PQ

    def open_paths(self) -> list[str]:
        """Paths whose mean worth over the measured bins is above zero."""
        means = self.values_PQ().nanmean(dim=1)
        return [name for name, mean in zip(self.paths, means.tolist(), strict=True) if mean > 0]

    def state_dict(self) -> dict[str, Tensor]:
        """Sums and counts."""
        return {"sums": self.sums_PQ.clone(), "counts": self.counts_PQ.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up sums and counts.

        Raises:
            BadInput: they are of another number of paths or bins.
        """
        if state["sums"].shape != self.sums_PQ.shape:
            raise BadInput(
                f"the checkpoint's routing table is {tuple(state['sums'].shape)} (paths, bins), "
                f"this run's is {tuple(self.sums_PQ.shape)}: resume with the same settings"
            )
        self.sums_PQ, self.counts_PQ = state["sums"].clone(), state["counts"].clone()


def audit_rows(share: float, *, sequences: int, calls: int) -> int:
    """Rows to audit in the batch number `calls`, so that the total keeps to `share` exactly.

    >>> [audit_rows(0.03, sequences=16, calls=n) for n in range(5)]
    [0, 0, 1, 0, 1]
    """
    # rounded first: 0.03 * 100 is 2.999... in binary
    whole = [int(round(share * sequences * n, 9)) for n in (calls, calls + 1)]
    return whole[1] - whole[0]


def assign(
    router: str,
    *,
    difficulty_B: Tensor,
    capacities: Mapping[str, int],
    values_BP: Mapping[str, Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Rows (sorted indices) of each path; each row takes one path at most, the rest skip.

    `difficulty` fills the paths so that the measured worth is as large as their fixed sizes allow,
    largest worth first; of rows worth the same the harder goes first. Rows in bins where nothing
    was measured count as worth most: they must be tried. `full` is told by the capacities.

    Args:
        router: `difficulty`, `random`, `hardest`, `easiest` or `full`.
        difficulty_B: of the rows that are free, on the CPU.
        capacities: path to number of rows, dearest path first.
        values_BP: path to the worth of each row (NaN where unknown); for `difficulty` alone.
        generator: of `random`.
    """
    free = torch.ones(len(difficulty_B), dtype=torch.bool)
    chosen: dict[str, Tensor] = {}
    for position, (path, capacity) in enumerate(capacities.items()):
        if router == "random":
            score = torch.rand(len(difficulty_B), generator=generator, dtype=torch.float64)
        elif router == "difficulty":
            later = list(capacities)[position + 1 :]
            score = _advantage(path, later, values_BP)
        else:
            score = difficulty_B.double() * (-1.0 if router == "easiest" else 1.0)
        chosen[path] = _best(score, difficulty_B, free, capacity)
        free[chosen[path]] = False
    return chosen


def _advantage(path: str, later: Sequence[str], values_BP: Mapping[str, Tensor]) -> Tensor:
    """Worth of a path over the next best: a cheaper path, or none (0)."""
    worth = values_BP[path]
    others = [torch.zeros_like(worth), *(values_BP[p].nan_to_num(0.0) for p in later)]
    return (worth - torch.stack(others).amax(0)).nan_to_num(torch.inf)


def _best(score: Tensor, difficulty_B: Tensor, free: Tensor, count: int) -> Tensor:
    harder_first = difficulty_B.argsort(descending=True, stable=True)
    order = harder_first[score[harder_first].argsort(descending=True, stable=True)]
    order = order[free[order]]
    return order[:count].sort().values


def check_settings(
    paths: list[str],
    capacities: Mapping[str, float],
    router: str,
    measure: str,
    audit_share: float,
) -> None:
    """Refuse what cannot be routed.

    Raises:
        BadInput: see `Router`.
    """
    if router not in ROUTERS:
        raise BadInput(f"router={router!r} is unknown; use one of {ROUTERS}")
    if measure not in ("label_loss", "entropy"):
        raise BadInput(f"measure={measure!r} is unknown; use label_loss or entropy")
    unknown = [name for name in capacities if name not in paths]
    if unknown:
        hint = did_you_mean(unknown[0], paths)
        raise BadInput(f"capacities name no path: {', '.join(unknown)}.{hint} Paths: {paths}")
    if min([audit_share, *capacities.values()]) < 0 or sum(capacities.values()) + audit_share > 1:
        raise BadInput(
            f"the shares must be 0 or above and add up to 1 at most: "
            f"capacities {dict(capacities)}, audit_share={audit_share}"
        )
    if router == "difficulty" and audit_share == 0:
        raise BadInput("router=difficulty learns from audits: audit_share must be above 0")
