"""Distillation that spends the teacher where it pays; the router is in `compress.distill`."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule, Trainer

from compress.callbacks.base import CompressionCallback
from compress.callbacks.run_length import run_length
from compress.contract import LogitTerm, Step
from compress.distill.build import LogitSettings, teacher_term
from compress.distill.further_teachers import as_teacher
from compress.distill.paths import make_paths
from compress.distill.router import Router
from compress.distill.terms import LabelsOfSome
from compress.distill.window import check_window
from compress.errors import BadInput
from compress.schedule import Moment, steps_of


class RoutedDistillation(CompressionCallback):
    """Runs the student first and the teacher only for the sequences that gain most by it.

    Each rank sends a fixed share of its rows down each path, so cost and shapes are known
    beforehand; a few random rows are audited on every path, and from these the router learns what
    a path is worth to rows of each difficulty. Use it in place of `LogitsDistillation`.

    Args:
        teacher_weight: factor of the loss; 0.0 still routes, and teaches nothing.
        capacities: share of rows a path: `full`, `exit<layers>` (`exit4`: the teacher's first 4
            layers), or a name of `teachers`; what is left skips the teacher.
        router: `difficulty`; for comparison `random`, `hardest`, `easiest`, `full` (every row).
        measure: of difficulty: `label_loss` or `entropy`.
        start: when the teacher begins to work: an optimizer step, or a share of the run (0.04).
            Before, every row skips it.
        stop: when it works no more, likewise; None: to the end. `router=full` with a window of
            half the run costs exactly half of an always-full teacher.
        audit_share: share of rows audited on every path, drawn at random.
        bins: difficulty bins, by rank in the batch; 1 knows no difficulty.
        labels_instead: True gives rows that no path teaches the teacher's weight on labels, so
            that every row weighs the same; False leaves them the labels' own weight alone.
        rescale: True divides each path's loss by the share of rows it covered, so that few rows
            weigh as much as all; False lets fewer rows weigh less.
        divergence: as for `LogitsDistillation`.
        temperature: as for `LogitsDistillation`.
        vocab_size: as for `LogitsDistillation`.
        teachers: further teachers by name, each a path of its own: a checkpoint's folder, its hub
            name, or a `Teacher`.
        lens_learning_rate: of the exits' calibration; 0.0 leaves them as they are.
        seed: of audits and random routes.
        name: of the loss terms; default `routed`.

    Raises:
        BadInput: a setting is unknown or out of range, or the shares add up to more than 1.
    """

    uses_teacher = True

    def __init__(
        self,
        *,
        teacher_weight: float = 0.5,
        capacities: Mapping[str, float] | None = None,
        router: str = "difficulty",
        measure: str = "label_loss",
        start: Moment = 0.0,
        stop: Moment | None = None,
        audit_share: float = 0.03,
        bins: int = 4,
        labels_instead: bool = True,
        rescale: bool = False,
        divergence: str = "forward_kl",
        temperature: float = 1.0,
        vocab_size: int | None = None,
        teachers: Mapping[str, Any] | None = None,
        lens_learning_rate: float = 1e-3,
        seed: int = 0,
        name: str = "",
    ) -> None:
        """Checks the settings; the paths are made when the teacher is there."""
        super().__init__(name=name)
        self.settings = LogitSettings(
            teacher_weight=teacher_weight, divergence=divergence, temperature=temperature,
            vocab_size=vocab_size,
        )  # fmt: skip
        self.capacities = dict(capacities or {"full": 0.3})
        self.teachers, self.term = dict(teachers or {}), name or "routed"
        self.labels_instead, self.rescale = labels_instead, rescale
        self.router_settings: dict[str, Any] = {
            "router": router, "measure": measure, "audit_share": audit_share, "bins": bins,
            "lens_learning_rate": lens_learning_rate, "seed": seed,
        }  # fmt: skip
        self.start, self.stop = start, stop
        shares = [m for m in (start, stop) if isinstance(m, float)]
        if any(not 0 <= m <= 1 for m in shares):
            raise BadInput(f"start={start}, stop={stop}: shares of the run lie in [0, 1]")
        self.router: Router | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the paths; before restore, so that their state finds them."""
        super().setup(trainer, pl_module, stage)
        if self.router is None:
            if pl_module.teacher is None:
                raise BadInput("routing needs a teacher: set teacher=...")
            others = {name: as_teacher(given) for name, given in self.teachers.items()}
            paths = make_paths(pl_module.teacher, others, self.capacities)
            start, stop = self.window(trainer)
            self.router = Router(
                paths, capacities=self.capacities, start=start, stop=stop, **self.router_settings
            )

    def window(self, trainer: Trainer) -> tuple[int, int | None]:
        """The window in optimizer steps."""
        if not any(isinstance(m, float) and m for m in (self.start, self.stop)):
            return int(self.start), None if self.stop is None else int(self.stop)
        total = run_length(trainer)
        stop = None if self.stop is None else steps_of(self.stop, total=total)
        return steps_of(self.start, total=total), stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a window that begins after the run's end."""
        super().on_train_start(trainer, pl_module)
        if trainer.global_step < (total := run_length(trainer)):  # a run that is over is restored
            check_window(start=self.router.start, stop=self.router.stop, total=total)

    def losses(self, step: Step) -> Iterator[tuple[str, LogitTerm]]:
        """One logit term a path, and one for the labels of rows that none teaches."""
        sequences, length = step.student.hidden_BLH.shape[:2]
        untaught_B = torch.ones(sequences, dtype=torch.bool, device=step.student.hidden_BLH.device)
        for path, signal in self.router.route(step).items():
            untaught_B[signal.sequences_S] = False
            share = signal.sequences_S.numel() / sequences if self.rescale else 1.0
            settings = replace(self.settings, teacher_weight=self.settings.teacher_weight / share)
            term = self.term if path == "full" else f"{self.term}_{path}"
            yield term, teacher_term(step, settings, signal=signal)
        if self.labels_instead and untaught_B.any():
            weight = self.settings.teacher_weight
            yield (
                f"{self.term}_labels",
                LabelsOfSome(sequences_B=untaught_B, length=length, weight=weight),
            )

    @property
    def teacher_cost(self) -> dict[str, Any]:
        """This rank's teacher FLOPs and rows so far, for the report."""
        return self.router.ledger.as_dict() if self.router else {}

    def report(self) -> dict[str, Any]:
        """What report.json shows: what the teacher cost, where rows went, what paths are worth."""
        if not self.router or not self.router.calls:
            return {}
        cost, table = self.teacher_cost, self.router.table
        rows, always = cost["rows"], cost["flops_if_always_full"]
        worth = {
            path: [None if math.isnan(v) else round(v, 6) for v in values]
            for path, values in zip(table.paths, table.values_PQ().tolist(), strict=True)
        }
        total = max(sum(rows.values()), 1)
        shares = {name: count / total for name, count in rows.items()}
        told = {"router": self.router.router, "shares": shares, "worth_by_difficulty": worth}
        share = cost["flops"] / always if always else None
        return {
            "teacher_cost" + self.name: {**cost, "share": share},
            "routing" + self.name: told,
        }

    def state_dict(self) -> dict[str, Any]:
        """Table, calibration, cost and place in the random stream."""
        kept = {"router": self.router.state_dict()} if self.router else {}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up again."""
        super().load_state_dict(state_dict)
        self.router.load_state_dict(state_dict["router"])
