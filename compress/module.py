"""The Lightning side of a compression run: student and teacher in, one summed loss out.

`CompressionMixin` joins the losses of compression callbacks in any `LightningModule`;
`CompressionModule` is the ready one for Hugging Face models.
"""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from compress.accumulation import AccumulationWindow, scale_gradients
from compress.batches import check_batch
from compress.contract import Batch, LossSource, Step, Teacher, Trace, union_of_wants
from compress.distill.chunked import head_losses
from compress.distill.embeddings import embedding_distance, unlabelled
from compress.distill.terms import LabelLoss
from compress.errors import BadInput
from compress.joint_loss import joint_loss
from compress.models import check_head_split, trace_causal_lm, trace_classifier, trace_embedding
from compress.parameter_groups import parameter_groups
from compress.schedule import warmup_cosine

TRACERS: Mapping[str, Callable[[nn.Module, Batch], Trace]] = {
    "causal_lm": trace_causal_lm,
    "classification": trace_classifier,
    "embedding": trace_embedding,
}


class CompressionMixin:
    """For your own `LightningModule`: own `self.student`, call `compression_loss` in the step.

    ```python
    class Mine(CompressionMixin, L.LightningModule):
        def __init__(self, student, teacher=None):
            super().__init__()
            self.student, self.teacher = student, teacher

        def training_step(self, batch, batch_idx):
            return self.compression_loss(batch, trace_causal_lm(self.student, batch))
    ```
    """

    student: nn.Module
    teacher: Teacher | None = None
    label_weight: float = 1.0
    trainer: Any
    log: Any

    def compression_loss(self, batch: Batch, student: Trace) -> Tensor:
        """The sum of the label loss and of every compression callback's terms; logs each.

        Raises:
            BadInput: two callbacks use one name for a term.
        """
        step = self.compression_step(batch, student)
        total, values = joint_loss(step, self._sources(), label_weight=self.label_weight)
        for name, value in values.items():
            self.log(f"train/{name}", value, on_step=True, prog_bar=True)
        self.log("train/loss", total.detach(), on_step=True)
        return total * self._weight(step) if self.weighs_labels else total

    @property
    def weighs_labels(self) -> bool:
        """Whether each label of an optimizer step counts alike, in whatever micro-batch it is.

        DeepSpeed averages micro-batches in its own engine: there each counts alike.
        """
        own_engine = isinstance(self.trainer.strategy, DeepSpeedStrategy)
        by_hand = not getattr(self, "automatic_optimization", True)
        return self.trainer.accumulate_grad_batches > 1 and not (own_engine or by_hand)

    @property
    def window(self) -> AccumulationWindow:
        """The labels of the optimizer step under way."""
        found: AccumulationWindow = self.__dict__.setdefault("_window", AccumulationWindow())
        return found

    def _weight(self, step: Step) -> Tensor | float:
        key, positions = (id(self.trainer), step.number), 1.0
        if self.window.begins(key):
            positions = float(step.batch["input_ids"].numel())
            if self.trainer.world_size > 1:
                held = torch.tensor(positions, device=step.student.hidden_BLH.device)
                positions = float(self.trainer.strategy.reduce(held, reduce_op="mean"))
        return self.window.weight(key, labels=step.count, positions=positions)

    def compression_step(self, batch: Batch, student: Trace) -> Step:
        """The step that callbacks are shown; its count is the mean over ranks."""
        want = union_of_wants(self._sources())
        step = Step(
            batch=batch, student=student, teacher=self.teacher, want=want,
            number=self.trainer.global_step,
        )  # fmt: skip
        if self.trainer.world_size > 1:
            # DDP averages gradients over ranks: dividing by the mean count makes the sum exact
            count = torch.tensor(float(step.rows_N.numel()), device=student.hidden_BLH.device)
            step._count = self.trainer.strategy.reduce(count, reduce_op="mean").clamp(min=1.0)
        return step

    def configure_gradient_clipping(self, *args: Any, **settings: Any) -> None:
        """Clips as Lightning does; then callbacks add what must not be clipped."""
        if self.weighs_labels:
            factor = self.window.factor(self.trainer.accumulate_grad_batches)
            scale_gradients(self.parameters(), factor)  # type: ignore[attr-defined]
        super().configure_gradient_clipping(*args, **settings)  # type: ignore[misc]
        for callback in self.trainer.callbacks:
            if hasattr(callback, "after_clipping"):
                callback.after_clipping()

    def _sources(self) -> list[LossSource]:
        return [c for c in self.trainer.callbacks if isinstance(c, LossSource)]


class CompressionModule(CompressionMixin, L.LightningModule):
    """Trains a student under any set of compression callbacks.

    Args:
        student: a Hugging Face model; transforms are attached to it by callbacks in `setup`.
        teacher: answers `signal(batch, want)`; None where no callback needs one. It is no
            submodule: not in the checkpoint, the optimizer or DDP's buckets.
        task: `causal_lm` (next-token labels), `classification` (one label a sequence) or
            `embedding` (no labels at all: an encoder learns from the callbacks' terms alone).
        learning_rate: peak of AdamW (Loshchilov & Hutter 2019).
        weight_decay: on matrices alone; 0.0 is off.
        warmup_steps: optimizer steps to the peak; then half a cosine to `final_share` of it.
        final_share: learning rate at the last step over the peak; 1.0 keeps it constant.
        label_weight: weight of the label loss; 0.0 learns from the callbacks' terms alone.
        beta2: decay of AdamW's second moment.
        compile: `torch.compile` the student before the first step.

    Raises:
        BadInput: the task is unknown, student and teacher disagree about the vocabulary, or
            `task=embedding` has no teacher.
        UnsupportedModel: the model's logits are not its head on its last hidden states.
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: Teacher | None = None,
        task: str = "causal_lm",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        warmup_steps: int = 20,
        final_share: float = 0.1,
        label_weight: float = 1.0,
        beta2: float = 0.95,
        compile: bool = False,
    ) -> None:
        """Keeps the settings; nothing is attached yet."""
        super().__init__()
        if task not in TRACERS:
            raise BadInput(f"task={task!r} is unknown; use one of {sorted(TRACERS)}")
        if task == "causal_lm":
            check_head_split(student)
        if task == "embedding" and teacher is None:
            raise BadInput("task=embedding has no labels, it needs a teacher: set teacher=...")
        if task == "embedding" and (pooler := getattr(student, "pooler", None)) is not None:
            pooler.requires_grad_(False)  # no part of a mean embedding: DDP would wait for it
        self.student, self.teacher, self.task = student, teacher, task
        self.label_weight = 0.0 if task == "embedding" else label_weight
        self.run_tracer = TRACERS[task]
        self.learning_rate, self.weight_decay, self.beta2 = learning_rate, weight_decay, beta2
        self.warmup_steps, self.final_share, self.compile_student = (
            warmup_steps, final_share, compile,
        )  # fmt: skip
        self.student.train()  # from_pretrained answers in eval mode

    def on_fit_start(self) -> None:
        """Compile last: a hook added after the first compiled call never fires."""
        if self.compile_student:
            self.student.compile()
            for layer in self.student.children():
                layer.compile()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuses what the student cannot take, while it costs no wait for a device."""
        check_batch(batch, self.student)
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The summed loss of one micro-batch."""
        return self.compression_loss(
            unlabelled(batch) if self.task == "embedding" else batch,
            self.run_tracer(self.student, batch),
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Label loss alone (nats a token), so that all runs are compared by one measure.

        Embeddings: the distance to the teacher's, see `compress.distill.embeddings`.
        """
        if self.task == "embedding":
            loss = embedding_distance(self.student, self.teacher, batch)
            self.log("val/loss", loss, prog_bar=True, sync_dist=True)
            return loss
        step = self.compression_step(batch, self.run_tracer(self.student, batch))
        loss, _ = head_losses(step, {"labels": LabelLoss(weight=1.0)})
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=step.rows_N.numel())
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW: decayed matrices, undecayed vectors, and each transform's own parameters."""
        groups = list(parameter_groups(self, self.learning_rate, self.weight_decay))
        # fused on every device: one pass over the parameters instead of a dozen
        optimizer = torch.optim.AdamW(
            groups, lr=self.learning_rate, betas=(0.9, self.beta2), fused=True
        )
        # fp16's unscaling stays outside the fused step, so that gradients are clipped in between
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        total = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            return warmup_cosine(
                step, warmup=self.warmup_steps, total=total, floor=self.final_share
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch.

        Raises:
            BadInput: these weights are of a student of another shape.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            _, *told = str(error).splitlines()
            first = "\n".join(f"  {line.strip()[:200]}" for line in told[:3])
            raise BadInput(
                "the checkpoint is of another student than these settings build:\n"
                f"{first}\n{len(told)} difference(s); go on with the settings of its run (its "
                "folder's config.yaml), or start anew in another run_dir"
            ) from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Random states go along, so that a resumed run draws what this one would have drawn."""
        checkpoint["compress_random"] = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the random states."""
        random = checkpoint.get("compress_random", {})
        if "torch" in random:
            torch.set_rng_state(random["torch"])
        if random.get("cuda") and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(random["cuda"])
