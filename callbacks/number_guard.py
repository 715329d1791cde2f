"""Guards a run's numbers; finding what is wrong with them is `compress.guard`'s."""

from typing import Any

from lightning import LightningModule, Trainer
from torch import Tensor, nn

from compress.callbacks.base import CompressionCallback
from compress.errors import BadInput
from compress.guard import (
    NumbersFailed,
    bad_gradients,
    bad_weights,
    drop_step,
    first_names,
    what_is_wrong,
    why_no_numbers,
)
from compress.snapshot import Snapshot

POLICIES = ("stop", "skip", "rollback")
WINDOW = 64


class NumberGuard(CompressionCallback):
    """Finds NaN, infinities and spikes within a step, names their source, and acts by a policy.

    Args:
        policy: `stop` ends the run; `skip` drops the step's gradient; `rollback` also puts weights
            and optimizer back to the last snapshot. One is taken wherever another callback's
            schedule changed the student, so that going back never undoes such a change.
        spike_factor: a loss above this multiple of the median of the last 64 steps counts as a
            fault; 0.0 looks for no spikes.
        snapshot_every: optimizer steps between snapshots at most, for `rollback`.
        most_faults: faults in one run before any policy stops; 0 stops at the first.
        name: tells two of these apart.

    Raises:
        BadInput: a setting is unknown or out of range, or `rollback` meets a sharded student.
        NumbersFailed: by policy; names the step, the loss terms and the layer.
    """

    def __init__(
        self,
        *,
        policy: str = "stop",
        spike_factor: float = 0.0,
        snapshot_every: int = 50,
        most_faults: int = 10,
        name: str = "",
    ) -> None:
        """Checks the settings."""
        super().__init__(name=name)
        if policy not in POLICIES:
            raise BadInput(f"policy={policy!r} is unknown; use one of {', '.join(POLICIES)}")
        if spike_factor != 0 and spike_factor <= 1:
            raise BadInput(f"spike_factor={spike_factor}: give 0 (off) or more than 1, such as 4")
        if snapshot_every < 1 or most_faults < 0:
            raise BadInput(
                f"snapshot_every={snapshot_every} must be at least 1, most_faults={most_faults} "
                "at least 0"
            )
        self.policy, self.spike_factor = policy, spike_factor
        self.snapshot_every, self.most_faults = snapshot_every, most_faults
        self.losses_seen: list[float] = []
        self.faults: list[str] = []
        self._batch: Any = None
        self._due = False
        self._losses: list[float] = []
        self._snapshot: Snapshot | None = None
        self._snapshot_step = -1
        self._scheduled: list[CompressionCallback] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has the other callbacks note where their schedules change the student."""
        super().on_train_start(trainer, pl_module)
        self._losses, self._snapshot, self._scheduled = [], None, []
        if self.policy == "rollback":
            if type(trainer.strategy).__name__ not in ("SingleDeviceStrategy", "DDPStrategy"):
                raise BadInput("policy=rollback needs the whole student on each rank: use skip")
            self._scheduled = [
                c
                for c in trainer.callbacks
                if isinstance(c, CompressionCallback) and not isinstance(c, NumberGuard)
            ]
            for callback in self._scheduled:
                callback.notes_changes = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the batch, and whether an optimizer step follows it; takes a snapshot when due."""
        self._batch = batch
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        self._due = whole or trainer.is_last_batch
        if self.policy == "rollback" and self._snapshot_due(trainer.global_step):
            self._take_snapshot(trainer, pl_module)

    def _snapshot_due(self, step: int) -> bool:
        if self._snapshot is None or self._schedule_moved():
            return True
        return step != self._snapshot_step and step % self.snapshot_every == 0

    def _schedule_moved(self) -> bool:
        """Whether a callback changed the student by schedule after the snapshot."""
        return any(c.changed_at > self._snapshot_step for c in self._scheduled)

    def _take_snapshot(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before a batch, not after one: by now every callback, whatever their order, has made its
        # start and its update, and plans and flags that no tensor holds agree with the weights
        step = trainer.global_step
        if weights := bad_weights(pl_module):
            self.faults.append(f"step {step}: weights at fault: {first_names(weights)}")
            raise NumbersFailed(self._message(step, f"weights at fault: {first_names(weights)}"))
        self._snapshot = None  # freed first: two would be held at once
        self._snapshot = Snapshot(pl_module, trainer.optimizers)
        self._snapshot_step = step

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Notes the loss, without the factor that a loss scaler put on it."""
        scaler = _scaler(trainer)
        scale = 1.0 if scaler is None else scaler.get_scale()
        self._losses.append(float(loss.detach()) / scale)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before any callback reads the gradients, and before clipping spreads what is wrong."""
        if not self._due:
            return  # what is NaN stays NaN; ranks agree where their gradients were summed
        losses, self._losses = self._losses, []
        loss = sum(losses) * _unweighted(trainer, pl_module)
        problem, unexplained = self._problem(trainer, pl_module, loss)
        if not _on_any_rank(trainer, problem is not None):
            self.losses_seen = [*self.losses_seen, loss][-WINDOW:]
            return
        if _on_any_rank(trainer, unexplained):
            # on all ranks: the forward pass of a sharded student needs every one
            why = self._why(trainer, pl_module)
            problem = problem and f"{problem}; {why}"
        self._act(trainer, pl_module, problem or "another rank found a fault")

    def _problem(
        self, trainer: Trainer, pl_module: LightningModule, loss: float
    ) -> tuple[str | None, bool]:
        # fp16 meets infinite gradients by design: its loss scaler skips those steps
        gradients = [] if _scaler(trainer) else bad_gradients(pl_module)
        return what_is_wrong(loss, gradients, self.losses_seen, spike_factor=self.spike_factor)

    def _why(self, trainer: Trainer, pl_module: LightningModule) -> str:
        terms = {
            k.removeprefix("train/"): float(v)
            for k, v in trainer.callback_metrics.items()
            if k.startswith("train/") and k != "train/loss"
        }
        with trainer.precision_plugin.forward_context():  # what overflows in fp16 may not in fp32
            return why_no_numbers(
                pl_module.student, self._batch, terms, weights=bad_weights(pl_module)
            )

    def _act(self, trainer: Trainer, pl_module: LightningModule, problem: str) -> None:
        step = trainer.global_step
        self.faults.append(f"step {step}: {problem}")
        if self.policy == "stop" or len(self.faults) > self.most_faults:
            raise NumbersFailed(self._message(step, problem))
        if self._snapshot is not None:
            self._snapshot.restore(pl_module, trainer.optimizers)
        drop_step(pl_module, scaled=_scaler(trainer) is not None)

    def _message(self, step: int, problem: str) -> str:
        many = f" ({len(self.faults)} faults)" if len(self.faults) > 1 else ""
        return (
            f"step {step}{many}: {problem}. Nothing was saved after it: go on with ckpt=last and "
            "a lower training.learning_rate or trainer.clip_norm, or let the run pass over such "
            "steps: callbacks.guard.policy=skip (or rollback)"
        )

    def advance(self, student: nn.Module, optimizer_step: int) -> None:
        """Looks at the weights after each step."""
        weights = bad_weights(self._module)
        if not weights:
            return
        problem = f"weights at fault: {first_names(weights)}"
        self.faults.append(f"step {optimizer_step}: {problem}")
        moved = self._snapshot is not None and self._schedule_moved()
        if moved:  # to go back would undo half of it: the plan stays, the masks do not
            problem += ", in the step in which a schedule changed the student: no way back over it"
        if self._snapshot is None or moved or len(self.faults) > self.most_faults:
            raise NumbersFailed(self._message(optimizer_step, problem))
        self._snapshot.restore(self._module, self._optimizers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """One look for each optimizer step."""
        # the whole module: projectors learn beside the student
        self._module, self._optimizers = pl_module, trainer.optimizers
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)

    def report(self) -> dict[str, Any]:
        """What the report shows: each fault that was passed over."""
        return {"number_faults": list(self.faults)}

    def state_dict(self) -> dict[str, Any]:
        """Losses that spikes are measured by, and the faults so far."""
        return {**super().state_dict(), "losses": self.losses_seen, "faults": self.faults}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with them."""
        super().load_state_dict(state_dict)
        self.losses_seen, self.faults = list(state_dict["losses"]), list(state_dict["faults"])


def _on_any_rank(trainer: Trainer, here: bool) -> bool:
    if trainer.world_size == 1:
        return here
    return bool(trainer.strategy.reduce_boolean_decision(here, all=False))


def _unweighted(trainer: Trainer, pl_module: Any) -> float:
    """Turns the sum of micro-batches' losses, weighed by their labels, into their mean."""
    if not getattr(pl_module, "weighs_labels", False):
        return 1.0
    return float(pl_module.window.factor(trainer.accumulate_grad_batches))


def _scaler(trainer: Trainer) -> Any:
    """The loss scaler of fp16, where there is one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None
