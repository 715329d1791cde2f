"""What routing costs: FLOPs of every path, counted once a row, and how many rows took it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from compress.contract import Batch, DenseSignal
from compress.distill.paths import rows_of
from compress.errors import BadInput


class Ledger:
    """FLOPs and rows so far, of this rank.

    A path's price is counted by `torch.utils.flop_counter` (matrix products) on one row that
    trains nothing, once for each length; the head's product is done in the loss, so it is added
    by the positions that count. Torch does not count fused attention on a CPU: there attention's
    own products are left out, of every path alike. A cached or served teacher costs nothing here.

    Args:
        every_length: False counts at the first length alone and goes by tokens after that:
            ranks that share a sharded teacher must make the same calls, whatever their lengths.
    """

    def __init__(self, *, every_length: bool = True) -> None:
        self.every_length = every_length
        self.prices: dict[str, float] = {}
        self.flops: dict[str, float] = {
            "flops": 0.0, "flops_if_always_full": 0.0, "audit_flops": 0.0, "scoring_flops": 0.0,
        }  # fmt: skip
        self.rows: dict[str, int] = {}

    def price(self, name: str, path: Callable[[Batch], Any], batch: Batch) -> float:
        """FLOPs of this path for one row of the batch, without the head."""
        length = int(batch["input_ids"].shape[1])
        key = f"{name}@{length}" if self.every_length else f"{name}/token"
        if key not in self.prices:
            self.prices[key] = self._counted(name, path, batch) / (
                1 if self.every_length else length
            )
        return self.prices[key] * (1 if self.every_length else length)

    def head_price(self, name: str) -> float:
        """FLOPs of one position's logits."""
        return self.prices[f"{name}/head"]

    def _counted(self, name: str, path: Callable[[Batch], Any], batch: Batch) -> float:
        one = rows_of(batch, torch.zeros(1, dtype=torch.long))
        if not self.prices:
            path(one)  # a teacher checks itself at its first call: not a part of the price
        counter = FlopCounterMode(display=False)
        with counter:
            signal = path(one)
        if not isinstance(signal, DenseSignal) or signal.head is None:
            raise BadInput("routing needs a teacher that gives whole distributions, not K tokens")
        self.prices[f"{name}/head"] = 2.0 * signal.head.weight_VH.numel()
        return float(counter.get_total_flops())

    def add(self, kind: str, flops: float) -> None:
        """Book some FLOPs."""
        self.flops[kind] += flops

    def add_rows(self, name: str, count: int) -> None:
        """Book some rows."""
        self.rows[name] = self.rows.get(name, 0) + count

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {**self.flops, "rows": dict(self.rows)}

    def state_dict(self) -> dict[str, Any]:
        """Sums and prices."""
        return {"flops": dict(self.flops), "rows": dict(self.rows), "prices": dict(self.prices)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes them up again."""
        self.flops, self.rows = dict(state["flops"]), dict(state["rows"])
        self.prices = dict(state["prices"])
