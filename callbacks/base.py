"""What every compression callback shares: attaching in `setup`, one `advance` a step, its state."""

from collections.abc import Iterator
from itertools import chain
from typing import Any, ClassVar

from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset

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
        self._initialised = False
        self.notes_changes = False
        """Whether `changed_at` is kept; a guard that goes back turns it on for the others."""
        self.changed_at = -1
        """Optimizer steps made when `advance` last changed the student; -1: not in this run."""

    uses_teacher: ClassVar[bool] = False
    """Whether its losses ask for a teacher; a run without one is refused before it starts."""

    def decide(self, student: nn.Module, dataset: Dataset[Any]) -> None:
        """Plan, from weights and data, what `attach` will register; only where `needs_data`."""

    @property
    def needs_data(self) -> bool:
        """Whether `decide` looks at training rows before anything is attached."""
        return False

    def attach(self, student: nn.Module) -> None:
        """Register transforms and taps on the student; called once, before restore."""

    def initialise(self, student: nn.Module, dataset: Dataset[Any]) -> None:
        """Set scales, masks, ... of a fresh run (never of a resumed one) from weights and data.

        `dataset` gives training rows by index; drawing them leaves the training loader alone.
        """

    def want(self) -> Want:
        """What is asked of the teacher at each step."""
        return Want()

    def losses(self, step: Step) -> Iterator[tuple[str, Tensor | LogitTerm]]:
        """Named loss terms of one step."""
        yield from ()

    def advance(self, student: nn.Module, optimizer_step: int) -> None:
        """Bring masks, scales, ... to where they belong after `optimizer_step` steps."""

    def after_clipping(self) -> None:
        """Add to the gradients what must not count in their norm; just before a step."""

    def finalise(self, student: nn.Module) -> nn.Module:
        """What is exported, after the last step: the student itself, or a smaller one."""
        return student

    def compress_at_once(self, student: nn.Module, dataset: Dataset[Any]) -> None:
        """All of the compression without training (after `attach`): what a schedule ends with."""
        self.initialise(student, dataset)

    @property
    def state_key(self) -> str:
        """The key of this callback in a checkpoint."""
        return f"{type(self).__qualname__}[{self.name}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attaches before restore and before the optimizer is made: later cannot resume."""
        student = pl_module.student
        if self._attached_to is not student:
            if self.needs_data:
                # not by `setup_data`: called early, it forgets where a checkpoint's loader stood
                loader = trainer.fit_loop._data_source.dataloader()
                self.decide(student, loader.dataset)
            self.attach(student)
            self._attached_to = student

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Initialises a fresh run; notes where a resumed one stands."""
        self._seen_step, self.changed_at = trainer.global_step, -1
        if not self._initialised:
            self.initialise(pl_module.student, trainer.train_dataloader.dataset)
            self._initialised = True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; subclasses add to it."""
        return {"initialised": self._initialised}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._initialised = state_dict["initialised"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """One `advance` for each optimizer step, whatever the accumulation."""
        if trainer.global_step != self._seen_step:
            self._seen_step = trainer.global_step
            before = _versions(pl_module.student) if self.notes_changes else None
            self.advance(pl_module.student, trainer.global_step)
            if self.notes_changes and _versions(pl_module.student) != before:
                self.changed_at = trainer.global_step


def _versions(student: nn.Module) -> list[tuple[int, int]]:
    """Which tensors a model holds and how often each was written; nothing is read from a device."""
    held = chain(student.parameters(), student.buffers())
    return [(id(t), -1 if t.is_inference() else t._version) for t in held]
