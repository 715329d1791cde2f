"""Sends each sequence down one path of the teacher and keeps the books: worth, cost, state.

Legend: A audited sequences, B sequences, P paths, Q difficulty bins.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from compress.contract import DenseSignal, Step
from compress.distill.assignment import ValueTable, assign, audit_rows, check_settings
from compress.distill.audit import LensFit, distance_to, sub_step, sum_over_ranks, trace_signal
from compress.distill.difficulty import bins_of, difficulty
from compress.distill.ledger import Ledger
from compress.distill.paths import ExitPath, FullPath, rows_of
from compress.distill.window import check_window, teaches

FULL = "full"


class Router:
    """Routes one batch a call; the same calls give the same routes, resumed or not.

    Args:
        paths: by name, dearest first; `full` must be the first, it is what the others are held to.
        capacities: share of a rank's rows that each path takes; what is left skips the teacher.
        router: `difficulty`, `random`, `hardest`, `easiest` or `full` (every row, no audit).
        measure: `label_loss` or `entropy`.
        audit_share: share of rows, drawn at random, that take the full path to be measured.
        bins: difficulty bins of the table, by rank in the batch.
        lens_learning_rate: of the exits' calibration.
        seed: of audits and of random routes.
        start: optimizer step from which on the teacher works; before it every row skips.
        stop: first step at which it works no more; None: it works to the end.

    Raises:
        BadInput: a setting is unknown, the shares add up to more than 1, or no step is left.
    """

    def __init__(
        self,
        paths: Mapping[str, FullPath | ExitPath],
        *,
        capacities: Mapping[str, float],
        router: str = "difficulty",
        measure: str = "label_loss",
        audit_share: float = 0.03,
        bins: int = 4,
        lens_learning_rate: float = 1e-3,
        seed: int = 0,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        """Checks the settings; nothing runs yet."""
        check_window(start=start, stop=stop, total=None)
        self.start, self.stop = start, stop
        check_settings(list(paths), capacities, router, measure, audit_share)
        self.paths, self.capacities = dict(paths), {p: capacities.get(p, 0.0) for p in paths}
        self.router, self.measure, self.audit_share = router, measure, audit_share
        self.seed, self.bins, self.calls = seed, bins, 0
        self.table = ValueTable(paths=list(paths), bins=bins)
        self.fits = {
            name: LensFit(path, learning_rate=lens_learning_rate)
            for name, path in paths.items()
            if isinstance(path, ExitPath)
        }
        self.ledger = Ledger(every_length=_world_size() == 1)

    def route(self, step: Step) -> dict[str, DenseSignal]:
        """The paths' answers, each for its own rows; paths without rows are absent."""
        chosen, audited, bins_B = self._choose(step)
        raw = {name: self._run(name, rows, step) for name, rows in chosen.items() if len(rows)}
        if len(audited):
            counter = FlopCounterMode(display=False)
            with counter:
                self._audit(step, raw, audited, bins_B)
            for kind in ("audit_flops", "flops"):
                self.ledger.add(kind, counter.get_total_flops())
        answers = {n: self._answer(n, s, chosen[n], audited, step) for n, s in raw.items()}
        self._count(step, chosen, audited)
        self.calls += 1
        return {name: signal for name, signal in answers.items() if signal is not None}

    def _choose(self, step: Step) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Rows to run on each path (audited rows last), the audited rows, every row's bin."""
        sequences = step.student.hidden_BLH.shape[0]
        nobody = torch.zeros(0, dtype=torch.long)
        if not teaches(step.number, start=self.start, stop=self.stop):
            return {}, nobody, nobody
        if self.router == FULL:
            return {FULL: torch.arange(sequences)}, nobody, nobody
        generator = torch.Generator().manual_seed(hash((self.seed, _rank(), self.calls)))
        count = audit_rows(self.audit_share, sequences=sequences, calls=self.calls)
        shuffled = torch.randperm(sequences, generator=generator)
        audited, free = shuffled[:count].sort().values, shuffled[count:].sort().values
        difficulty_B = difficulty(step, measure=self.measure).cpu()
        scoring = 2.0 * step.student.head.weight_VH.numel() * len(step.rows_N)
        self.ledger.add("scoring_flops", scoring)
        bins_B = bins_of(difficulty_B, bins=self.bins)
        values_PQ = self.table.values_PQ()
        chosen = assign(
            self.router, difficulty_B=difficulty_B[free], generator=generator,
            capacities=self._sizes(sequences),
            values_BP={p: values_PQ[i, bins_B[free]] for i, p in enumerate(self.paths)},
        )  # fmt: skip
        measured = [p for p in self.paths if p in chosen or count]
        empty = torch.zeros(0, dtype=torch.long)
        rows = {p: torch.cat([free[chosen.get(p, empty)], audited]) for p in measured}
        return rows, audited, bins_B

    def _sizes(self, sequences: int) -> dict[str, int]:
        """Rows of each open path: `full` always is, the others once audits prove their worth."""
        usable = {FULL, *self.table.open_paths()}
        return {
            path: int(share * sequences + 0.5)
            for path, share in self.capacities.items()
            if path in usable
        }

    def _run(self, name: str, rows: Tensor, step: Step) -> DenseSignal:
        path, batch = self.paths[name], rows_of(step.batch, rows)
        self.ledger.add("flops", self.ledger.price(name, path, batch) * len(rows))
        signal = path.raw(batch) if isinstance(path, ExitPath) else path(batch)
        assert isinstance(signal, DenseSignal)  # the price was taken of one
        return signal

    def _answer(
        self, name: str, raw: DenseSignal, rows: Tensor, audited: Tensor, step: Step
    ) -> DenseSignal | None:
        """What is learned from: audited rows learn from the full path alone."""
        path, keep = self.paths[name], len(rows) if name == FULL else len(rows) - len(audited)
        if keep == 0 or raw.hidden_SLH is None:
            return None
        part = DenseSignal(hidden_SLH=raw.hidden_SLH[:keep], head=raw.head)
        if isinstance(path, ExitPath):
            with torch.no_grad():
                part = path.through_lens(part)
        device = step.student.hidden_BLH.device
        return DenseSignal(
            hidden_SLH=part.hidden_SLH, head=part.head, sequences_S=rows[:keep].to(device)
        )

    def _audit(
        self,
        step: Step,
        raw: Mapping[str, DenseSignal],
        audited: Tensor,
        bins_B: Tensor,
    ) -> None:
        """Measure every path on the audited rows; then fit the exits to them."""
        few = sub_step(step, audited)
        last = {name: _last_rows(signal, len(audited)) for name, signal in raw.items()}
        gap_A = distance_to(last[FULL], trace_signal(few.student), few)
        sums, counts = torch.zeros(2, len(self.paths), self.bins, dtype=torch.float64)
        for index, (name, path) in enumerate(self.paths.items()):
            left_A = torch.zeros_like(gap_A)
            if name != FULL:
                used = last[name]
                if isinstance(path, ExitPath):
                    with torch.no_grad():
                        used = path.through_lens(used)
                left_A = distance_to(last[FULL], used, few)
            sums[index].index_add_(0, bins_B[audited], (gap_A - left_A).cpu().double())
            counts[index].index_add_(0, bins_B[audited], torch.ones(len(audited)).double())
        shared = sum_over_ranks(torch.stack([sums, counts]).to(gap_A.device)).cpu()
        self.table.update(shared[0], shared[1])
        for name, fit in self.fits.items():
            fit.step(last[name], last[FULL], few)

    def _count(self, step: Step, chosen: Mapping[str, Tensor], audited: Tensor) -> None:
        sequences, length = step.student.hidden_BLH.shape[:2]
        positions_B = torch.bincount(step.rows_N.cpu() // length, minlength=sequences)
        always = self.ledger.price(FULL, self.paths[FULL], step.batch) * sequences
        always += self.ledger.head_price(FULL) * int(positions_B.sum())
        self.ledger.add("flops_if_always_full", always)
        taken = len(audited)
        for name, rows in chosen.items():
            routed = len(rows) - len(audited)
            learned = rows if name == FULL else rows[:routed]
            if len(learned):
                logits = self.ledger.head_price(name) * int(positions_B[learned].sum())
                self.ledger.add("flops", logits)
            self.ledger.add_rows(name, routed)
            taken += routed
        self.ledger.add_rows("audit", len(audited))
        self.ledger.add_rows("skip", sequences - taken)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to route as this one would have."""
        return {
            "calls": self.calls, "table": self.table.state_dict(),
            "ledger": self.ledger.state_dict(),
            "fits": {name: fit.state_dict() for name, fit in self.fits.items()},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes all that up again."""
        self.calls = state["calls"]
        self.table.load_state_dict(state["table"])
        self.ledger.load_state_dict(state["ledger"])
        for name, fit in self.fits.items():
            fit.load_state_dict(state["fits"][name])


def _last_rows(signal: DenseSignal, count: int) -> DenseSignal:
    assert signal.hidden_SLH is not None
    return DenseSignal(hidden_SLH=signal.hidden_SLH[-count:], head=signal.head)


def _started() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _world_size() -> int:
    return torch.distributed.get_world_size() if _started() else 1


def _rank() -> int:
    return torch.distributed.get_rank() if _started() else 0
