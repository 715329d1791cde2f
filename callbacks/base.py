"""What every compression callback shares: attaching in `setup`, one `advance` a step, its state."""

from collections.abc import Iterator
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from compress.contract import LogitTerm, Step, Want


class CompressionCallback(Callback):
    """A compression method in a Lightning run; several compose, in the order of the recipe.

    Args:
        name: tells two callbacks of one class apart (in checkpoints and loss terms).
    """

    def __init__(self, *, name: str = "") -> None:
        """Keeps the name; nothing is attached yet."""
        self.name = name
        self._attached_to: nn.Module | None = None
        self._seen_step = 0

    def attach(self, student: nn.Module) -> None:
        """Register transforms and taps on the student; called once, before restore."""

    def want(self) -> Want:
        """What is asked of the teacher at each step."""
        return Want()

    def losses(self, step: Step) -> Iterator[tuple[str, Tensor | LogitTerm]]:
        """Named loss terms of one step."""
        yield from ()

    def advance(self, student: nn.Module, optimizer_step: int) -> None:
        """Bring masks, scales, ... to where they belong after `optimizer_step` steps."""

    @property
    def state_key(self) -> str:
        """The key of this callback in a checkpoint."""
        return f"{type(self).__qualname__}[{self.name}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attaches before restore and before the optimizer is made: later cannot resume."""
        student = pl_module.student
        if self._attached_to is not student:
            self.attach(student)
            self._attached_to = student

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes where a resumed run stands."""
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """One `advance` for each optimizer step, whatever the accumulation."""
        if trainer.global_step != self._seen_step:
            self._seen_step = trainer.global_step
            self.advance(pl_module.student, trainer.global_step)
