"""Dynamic sparse training in a Lightning run; the mathematics lives in `compress.sparsify`."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from compress.callbacks.base import CompressionCallback
from compress.sparsify.dynamics import SparseLayers
from compress.sparsify.settings import SparsitySettings
from compress.targets import choose_layers


class DynamicSparsity(CompressionCallback):
    """Prunes and regrows weights every `every` optimizer steps until `stop`.

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
        start: int = 0,
        stop: int = 1000,
        every: int = 100,
        share: float = 0.3,
        backward_density: float = 1.0,
        decay: float = 0.0,
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
        self._gradients: dict[str, Tensor] = {}
        self._optimizers: list[torch.optim.Optimizer] = []

    def attach(self, student: nn.Module) -> None:
        """Puts a mask into the chain of every chosen layer."""
        layers = choose_layers(student, include=self.include, exclude=self.exclude)
        self.sparse = SparseLayers(layers, self.settings)
        self.history = [self.sparse.first_record] if self.sparse.first_record else []

    def advance(self, student: nn.Module, optimizer_step: int) -> None:
        """Updates the masks where one is due."""
        assert self.sparse is not None, "attach comes first"
        record = self.sparse.advance(
            optimizer_step, gradients=self._gradients, optimizers=self._optimizers
        )
        self._gradients = {}
        if record:
            self.history.append(record)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run goes on with the backward that the next step needs."""
        super().on_train_start(trainer, pl_module)
        self._optimizers = trainer.optimizers
        if self.sparse is not None:
            self.sparse.prepare(trainer.global_step)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Before clipping: gradients of unused weights are read and leave the norm."""
        if self.sparse is not None:
            self._gradients |= self.sparse.take_dense_gradients(trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Logs each update of the masks."""
        known = len(self.history)
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        for record in self.history[known:]:
            prefix = f"sparsity{self.name}"
            for key in ("density", "churn", "explored", "dead_neurons"):
                pl_module.log(f"{prefix}/{key}", float(record[key]))
            for layer, values in record["layers"].items():
                pl_module.log(f"{prefix}/density/{layer}", values["density"])

    def state(self) -> dict[str, Any]:
        """What the report shows: one record an update, over all and by layer."""
        return {"kind": "sparsity", "pattern": self.settings.pattern, "history": self.history}

    def state_dict(self) -> dict[str, Any]:
        """The history; masks travel with the model, schedules are functions of the step."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the history."""
        self.history = list(state_dict["history"])
