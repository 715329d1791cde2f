"""Dynamic sparse training in a Lightning run; the mathematics lives in `compress.sparsify`."""

from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from compress.callbacks.base import CompressionCallback
from compress.callbacks.run_length import run_length
from compress.callbacks.structured_pruning import StructuredPruning
from compress.errors import BadInput
from compress.history import kept
from compress.schedule import Moment
from compress.sparsify.dynamics import SparseLayers
from compress.sparsify.layers import learning, refuse_adapters
from compress.sparsify.settings import SparsitySettings
from compress.targets import choose_layers


class DynamicSparsity(CompressionCallback):
    """Prunes and regrows weights every `every` optimizer steps until `stop`.

    `start`, `stop` and `every` count optimizer steps, or are fractions (0.75) of the run.

    Args:
        density, pattern, budget, growth, schedule, start, stop, every, share, backward_density,
            decay, seed: see `compress.sparsify.settings.SparsitySettings`.
        include: name pattern(s) of the layers to mask.
        exclude: pattern(s) taken out again.
        name: tells two of these apart.
    """

    def __init__(
        self,
        *,
        density: float | None = 0.5,
        pattern: str = "unstructured",
        budget: str = "uniform",
        growth: str = "magnitude",
        schedule: str = "constant",
        start: Moment = 0,
        stop: Moment = 0.75,
        every: Moment = 0.05,
        share: float = 0.3,
        backward_density: float = 1.0,
        decay: float = 5.0,
        seed: int = 0,
        include: str = "*",
        exclude: str | None = None,
        name: str = "",
    ) -> None:
        """Checks the settings; nothing is attached yet."""
        super().__init__(name=name)
        self.settings = SparsitySettings(
            density=density, pattern=pattern, budget=budget, growth=growth, schedule=schedule,
            start=start, stop=stop, every=every, share=share, backward_density=backward_density,
            decay=decay, seed=seed,
        )  # fmt: skip
        self.include, self.exclude = include, exclude
        self.history: list[dict[str, Any]] = []
        self.sparse: SparseLayers | None = None
        self._newest: dict[str, Any] | None = None
        self._gradients: dict[str, Tensor] = {}
        self._optimizers: list[torch.optim.Optimizer] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fractions become optimizer steps; then the masks are attached."""
        if self.sparse is None:
            resumed = trainer.ckpt_path is not None
            self.settings = self.settings.over(run_length(trainer), resumed=resumed)
        super().setup(trainer, pl_module, stage)

    def attach(self, student: nn.Module) -> None:
        """Puts a mask into the chain of every chosen layer that learns."""
        layers = learning(choose_layers(student, include=self.include, exclude=self.exclude))
        self.sparse = SparseLayers(layers, self.settings)
        self.history = [self.sparse.first_record] if self.sparse.first_record else []

    def advance(self, student: nn.Module, optimizer_step: int) -> None:
        """Updates the masks where one is due."""
        assert self.sparse is not None, "attach comes first"
        record = self.sparse.advance(
            optimizer_step, gradients=self._gradients, optimizers=self._optimizers
        )
        self._gradients = {}
        self._newest = record
        if record:
            self.history = kept(self.history, record)

    def compress_at_once(self, student: nn.Module, dataset: Any) -> None:
        """The final masks, from the weights as they are."""
        assert self.sparse is not None, "attach comes first"
        self.sparse.settings = replace(self.settings, start=0, stop=1, every=1)
        self.sparse.advance(1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run goes on with the backward that the next step needs."""
        super().on_train_start(trainer, pl_module)
        refuse_later_pruning(self.settings.stop, trainer.callbacks)
        if self.sparse is not None and self.settings.growth == "gradient":
            refuse_adapters(self.sparse.layers)
        self._optimizers = trainer.optimizers
        if self.sparse is not None:
            self.sparse.prepare(trainer.global_step)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Before clipping: gradients of unused weights are read and leave the norm."""
        if self.sparse is not None:
            self._gradients |= self.sparse.take_dense_gradients(trainer.global_step + 1)

    def after_clipping(self) -> None:
        """The pull on unused weights: larger than any gradient, so that it must not be clipped."""
        if self.sparse is not None:
            self.sparse.pull_unused()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Logs each update of the masks."""
        self._newest = None
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        if record := self._newest:
            prefix = f"sparsity{self.name}"
            for key in ("density", "churn", "explored", "dead_neurons"):
                pl_module.log(f"{prefix}/{key}", float(record[key]))
            for layer, values in record["layers"].items():
                pl_module.log(f"{prefix}/density/{layer}", values["density"])

    def report(self) -> dict[str, Any]:
        """What report.json shows: records of updates, over all and by layer."""
        asked = {
            "pattern": self.settings.pattern,
            "growth": self.settings.growth,
            "budget": self.settings.budget,
            "target_density": self.settings.final_density,
        }
        last = dict(self.history[-1]) if self.history else {}
        last.pop("layers", None)
        return {f"sparsity{self.name}": {**asked, **last, "history": self.history}}

    def state_dict(self) -> dict[str, Any]:
        """The history; masks travel with the model, schedules are functions of the step."""
        return {**super().state_dict(), "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the history."""
        super().load_state_dict(state_dict)
        self.history = list(state_dict["history"])


def refuse_later_pruning(stop: Moment, callbacks: list[Any]) -> None:
    """Refuse structured pruning that goes on after the last update of these masks.

    Raises:
        BadInput: the density of what is left would no longer be the one asked for.
    """
    for other in callbacks:
        if isinstance(other, StructuredPruning) and other.schedule.stop > stop:
            raise BadInput(
                f"structured pruning goes on until step {other.schedule.stop}, but the sparsity "
                f"masks stand from step {stop} on: what is left would miss its density. "
                "Let pruning stop first"
            )
