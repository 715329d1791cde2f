"""Structured pruning in a Lightning run; the mathematics lives in `compress.prune`."""

from typing import Any

from lightning import LightningModule, Trainer
from torch import nn

from compress.callbacks.base import CompressionCallback
from compress.callbacks.run_length import run_length
from compress.history import kept
from compress.prune.build import calibration_batches
from compress.prune.channel_masks import (
    ChannelMask,
    apply_plan,
    attach_channel_masks,
    rank_masked_last,
)
from compress.prune.importance import check_criterion, measure
from compress.prune.plan import PrunePlan, PruneSizes, make_plan, widths_of
from compress.prune.schedule import PruneSchedule
from compress.prune.shrink import check_cuts, shrink
from compress.prune.structure import Structure, structure_of
from compress.schedule import Moment


class StructuredPruning(CompressionCallback):
    """Masks whole channels, heads and layers while training, then cuts them out of the model.

    `start`, `stop` and `every` count optimizer steps, or are fractions (0.3) of the run.

    Args:
        ffn_density, heads_density, kv_density, hidden_density, layers, round_to, block: what stays,
            see `compress.prune.plan.PruneSizes`.
        importance: `activation` (Minitron), `l1` or `taylor`; layers always by block influence.
        start, stop, every: when, see `compress.prune.schedule.PruneSchedule`.
        samples: training rows that importance is measured on, at each update.
        seed: of their draw.
        name: tells two of these apart.
    """

    def __init__(
        self,
        *,
        ffn_density: float = 0.5,
        heads_density: float = 1.0,
        kv_density: float = 1.0,
        hidden_density: float = 1.0,
        layers: int | None = None,
        round_to: int = 32,
        block: int = 1,
        importance: str = "activation",
        start: Moment = 0,
        stop: Moment = 0.3,
        every: Moment = 0.05,
        samples: int = 64,
        seed: int = 0,
        name: str = "",
    ) -> None:
        """Checks the settings; nothing is attached yet."""
        super().__init__(name=name)
        self.sizes = PruneSizes(
            ffn_density=ffn_density, heads_density=heads_density, kv_density=kv_density,
            hidden_density=hidden_density, layers=layers, round_to=round_to, block=block,
        )  # fmt: skip
        self.schedule = PruneSchedule(start=start, stop=stop, every=every)
        self.importance = check_criterion(importance)
        self.samples, self.seed = samples, seed
        self.plan: PrunePlan | None = None
        self.history: list[dict[str, Any]] = []
        self.masks: dict[str, ChannelMask] = {}
        self._batches: list[Any] = []
        self._agree: Any = lambda plan: plan

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fractions become optimizer steps; then the masks are attached."""
        if not self.masks:
            resumed = trainer.ckpt_path is not None
            self.schedule = self.schedule.over(run_length(trainer), resumed=resumed)
        super().setup(trainer, pl_module, stage)

    def attach(self, student: nn.Module) -> None:
        """A mask of ones in the chain of every weight that will lose rows or columns."""
        self.structure: Structure = structure_of(student)
        self.sizes.check(self.structure)
        self.masks = attach_channel_masks(student, self.structure, self.sizes)

    def initialise(self, student: nn.Module, dataset: Any) -> None:
        """Refuses cuts that other transforms cannot follow; prunes at once where `start=0`."""
        check_cuts(student, self.structure, self.sizes)
        self._batches = calibration_batches(dataset, samples=self.samples, seed=self.seed)
        self.advance(student, 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every rank takes rank 0's plan; a resumed run draws the same rows."""
        self._agree = trainer.strategy.broadcast
        dataset = trainer.train_dataloader.dataset
        self._batches = calibration_batches(dataset, samples=self.samples, seed=self.seed)
        super().on_train_start(trainer, pl_module)

    def advance(self, student: nn.Module, optimizer_step: int) -> None:
        """Measures importance and prunes further, where the schedule says so."""
        if self.schedule.updates_at(optimizer_step):
            self.prune(student, step=optimizer_step)

    def prune(self, student: nn.Module, *, step: int) -> None:
        """Sets the masks to what should stay after `step` steps."""
        count = len(self.structure.layers)
        sizes = self.schedule.sizes_at(self.sizes, step=step, layers=count)
        scores = measure(student, self.structure, self._batches, criterion=self.importance)
        rank_masked_last(scores, self.structure, self.masks)
        self.plan = self._agree(make_plan(self.structure, scores, sizes))
        apply_plan(student, self.structure, self.plan, self.masks)
        self.history = kept(self.history, {"step": step, **widths_of(self.plan)})

    def compress_at_once(self, student: nn.Module, dataset: Any) -> None:
        """The final sizes, from the weights as they are."""
        self.initialise(student, dataset)
        self.schedule = PruneSchedule(start=0, stop=0, every=1)
        self.prune(student, step=0)

    def finalise(self, student: nn.Module) -> nn.Module:
        """The smaller model, with the masks gone and all other transforms cut alike."""
        return student if self.plan is None else shrink(student, self.plan)

    def report(self) -> dict[str, Any]:
        """What report.json shows: widths at its updates."""
        last = self.history[-1] if self.history else {}
        return {"pruning" + self.name: {"importance": self.importance, **last,
                                        "history": self.history}}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The plan and the history; masks travel with the model."""
        plan = None if self.plan is None else self.plan.as_dict()
        return {**super().state_dict(), "plan": plan, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from them."""
        super().load_state_dict(state_dict)
        self.plan = state_dict["plan"] and PrunePlan(**state_dict["plan"])
        self.history = list(state_dict["history"])
