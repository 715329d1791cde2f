"""What compression callbacks see of a Hugging Face `Trainer`: what they read, and no more."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from compress.contract import Teacher
from compress.errors import BadInput
from compress.transforms import plain_state_dict

EXTRAS = "compression.pt"
"""Beside a checkpoint's plain weights: scales, masks, projectors, and the callbacks' own state."""

HOOKS = {"on_train_start", "on_before_optimizer_step", "on_train_batch_end"}
"""Those of Lightning's that are called here, beside `setup` and the callbacks' state."""


class ModuleView(nn.Module):
    """What callbacks read of a LightningModule: student, teacher, `log`; projectors join here.

    Args:
        student: the model that is compressed.
        teacher: kept as it is: no submodule, in no checkpoint.
        trainer: what callbacks read of theirs.
        loss: of one batch, summed over all terms; DDP finds whatever it uses in this module.
    """

    teacher: Teacher | None
    trainer: "TrainerView"

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | None,
        trainer: "TrainerView",
        *,
        loss: Callable[[dict[str, Tensor]], Tensor],
    ) -> None:
        """Holds the student alone; callbacks add what learns beside it."""
        super().__init__()
        self.student = student
        self.__dict__["teacher"], self.__dict__["trainer"] = teacher, trainer
        self._loss = loss

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """The summed loss of one batch."""
        return self._loss(inputs)

    def log(self, name: str, value: Any, **_: Any) -> None:
        """Keeps the last value; the Trainer logs it with its own figures."""
        self.trainer.callback_metrics[name] = torch.as_tensor(value).detach()

    def extras(self, callbacks: Sequence[Any]) -> dict[str, Any]:
        """All state that is not among the student's plain weights."""
        plain = {f"student.{name}" for name in plain_state_dict(self.student, transformed=False)}
        state = self.state_dict()
        return {
            "state": {k: v for k, v in state.items() if _plain_name(k) not in plain},
            "callbacks": {c.state_key: c.state_dict() for c in callbacks},
        }

    def restore(self, folder: Path, callbacks: Sequence[Any]) -> None:
        """Takes up a checkpoint of `CompressionTrainer`.

        Raises:
            BadInput: the folder is no such checkpoint, or is one of other callbacks.
        """
        from safetensors.torch import load_file

        if not (folder / EXTRAS).exists():
            raise BadInput(f"{folder} has no {EXTRAS}: it is no checkpoint of CompressionTrainer")
        kept = torch.load(folder / EXTRAS, weights_only=True, map_location="cpu")
        plain: dict[str, Tensor] = {}
        for file in sorted(folder.glob("model*.safetensors")):
            plain |= load_file(file)
        state = dict(self.state_dict())
        for key in state:
            name = _plain_name(key).removeprefix("student.")
            if key in kept["state"] or name in plain:
                state[key] = kept["state"].get(key, plain.get(name))
        missing = [c.state_key for c in callbacks if c.state_key not in kept["callbacks"]]
        if missing:
            raise BadInput(f"{folder} was written without {', '.join(missing)}")
        self.load_state_dict(state)
        for callback in callbacks:
            callback.load_state_dict(kept["callbacks"][callback.state_key])


class TrainerView:
    """What callbacks read of a Lightning trainer."""

    def __init__(self, trainer: Trainer) -> None:
        """Reads the Hugging Face Trainer at each use."""
        self._trainer = trainer
        self.callback_metrics: dict[str, Tensor] = {}
        self.strategy = SimpleNamespace(broadcast=_of_first_rank)
        self.ckpt_path: str | None = None  # known only once training begins
        self.went_back_to: int | None = None
        """Step of the best checkpoint, once the student is that one again."""

    def __getattr__(self, name: str) -> Any:
        """Only what a callback asks beyond this view comes here."""
        raise AttributeError(
            f"the Hugging Face Trainer shows callbacks no trainer.{name}: run this one in Lightning"
        )

    @property
    def global_step(self) -> int:
        """Optimizer steps that made the student what it is."""
        taken = self._trainer.state.global_step
        return int(taken if self.went_back_to is None else self.went_back_to)

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the run; -1 before it is known."""
        return int(self._trainer.state.max_steps or self._trainer.args.max_steps)

    @property
    def estimated_stepping_batches(self) -> float:
        """The same, by the epochs where it is not known; infinite for rows that have no number."""
        if self.max_steps > 0:
            return self.max_steps
        args = self._trainer.args
        try:
            batches = len(self._trainer.get_train_dataloader())
        except TypeError:
            return math.inf
        each = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        return float(math.ceil(args.num_train_epochs * each))

    @property
    def train_dataloader(self) -> "_Rows":
        """Training rows by index; not the loader that training draws from."""
        return _Rows(self._trainer.train_dataset, self._trainer.data_collator)

    @property
    def fit_loop(self) -> Any:
        """Where Lightning keeps the same rows before training begins."""
        return SimpleNamespace(
            _data_source=SimpleNamespace(dataloader=lambda: self.train_dataloader)
        )

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The one optimizer, without accelerate's wrapper."""
        wrapped = self._trainer.optimizer
        return [getattr(wrapped, "optimizer", wrapped)]

    @property
    def callbacks(self) -> list[Any]:
        """The compression callbacks."""
        return list(self._trainer.compression)

    @property
    def world_size(self) -> int:
        """Processes of this run."""
        return int(self._trainer.args.world_size)

    @property
    def global_rank(self) -> int:
        """This process among them."""
        return int(self._trainer.args.process_index)

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first process."""
        return self.global_rank == 0


class _Rows:
    """Training rows as tensors, whatever columns of lists a data set keeps."""

    def __init__(self, rows: Any, collate: Any) -> None:
        self.rows, self.collate, self.dataset = rows, collate, self

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.collate([self.rows[index]]).items()}


def refuse_hooks_not_called(callbacks: Sequence[Any]) -> None:
    """Refuse callbacks of which this Trainer would run a half.

    Raises:
        BadInput: they have hooks of Lightning's that are not in `HOOKS`.
    """
    lost = {type(c).__name__: hooks for c in callbacks if (hooks := _hooks_of(type(c)) - HOOKS)}
    if lost:
        told = "\n".join(f"  {name}: {', '.join(sorted(hooks))}" for name, hooks in lost.items())
        raise BadInput(
            f"{len(lost)} of {len(callbacks)} callbacks have hooks that this Trainer does not "
            f"call:\n{told}\nLeave them out here, or train in Lightning, by "
            "compress.module.CompressionModule"
        )


def _hooks_of(kind: type) -> set[str]:
    """Lightning's hooks that a callback fills; its base class has each of them, empty."""
    filled = (
        vars(base) for base in kind.__mro__
        if not (base.__name__ == "Callback" and "lightning" in base.__module__)
    )  # fmt: skip
    return {name for names in filled for name in names if name[:3] == "on_" or name == "teardown"}


def _of_first_rank(thing: Any) -> Any:
    """Rank 0's, on every rank."""
    held = [thing]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(held)
    return held[0]


def _plain_name(key: str) -> str:
    return key.replace(".parametrizations.", ".").removesuffix(".original")
