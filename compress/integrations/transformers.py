"""A Hugging Face `Trainer` that takes the same compression callbacks as Lightning's.

The callbacks see a trainer and a module of `compress.integrations.views`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerState

from compress.contract import LossSource, Step, Teacher, union_of_wants
from compress.errors import BadInput
from compress.integrations.views import EXTRAS, ModuleView, TrainerView, refuse_hooks_not_called
from compress.joint_loss import joint_loss
from compress.models import check_head_split, trace_causal_lm
from compress.parameter_groups import parameter_groups
from compress.transforms import plain_state_dict


class CompressionTrainer(Trainer):  # type: ignore[misc]
    """`transformers.Trainer` with compression callbacks: QAT, sparsity, pruning, distillation.

    A checkpoint folder holds the weights as trained under their plain names, so
    `from_pretrained` loads it, and what the callbacks need to go on in `compression.pt`. After
    training, `compress.export.write.export(trainer.model, ...)` writes what is served.

    Args:
        model: a causal language model; the callbacks attach to it here, before the optimizer.
        compression: instances of `compress.callbacks`, in the order they take effect.
        teacher: answers `signal(batch, want)`, such as `compress.teachers.local.LocalTeacher`.
        label_weight: of the labels' loss; 0.0 learns from the callbacks' terms alone.
        trainer: all else, as for `transformers.Trainer`; batches hold `input_ids` and `labels`.

    Raises:
        BadInput: a callback asks for a teacher and there is none, or has hooks that are not called
            here; or the model is sharded, or copied to several GPUs by one process.
        UnsupportedModel: the model's logits are not its head on its last hidden states.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        compression: Sequence[Any],
        teacher: Teacher | None = None,
        label_weight: float = 1.0,
        **trainer: Any,
    ) -> None:
        """Attaches every callback."""
        asking = [type(c).__name__ for c in compression if getattr(c, "uses_teacher", False)]
        if asking and teacher is None:
            raise BadInput(f"{', '.join(asking)} learn from a teacher: give teacher=...")
        refuse_hooks_not_called(compression)
        check_head_split(model)
        super().__init__(model, **trainer)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise BadInput("compression under a sharded Trainer is not offered: use Lightning")
        if (gpus := self.args.n_gpu) > 1:
            raise BadInput(
                f"one process would copy the student to {gpus} GPUs (DataParallel): start one a "
                f"GPU by torchrun --nproc-per-node={gpus}, or show it one: CUDA_VISIBLE_DEVICES=0"
            )
        self.model_accepts_loss_kwargs = False  # ours is a mean: accumulation divides it
        self.compression, self.label_weight = list(compression), label_weight
        self.view = TrainerView(self)
        self.compressed = ModuleView(model, teacher, self.view, loss=self._joint_loss)
        for callback in self.compression:
            callback.setup(self.view, self.compressed, "fit")
        self.add_callback(_Schedule(self))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """The labels' loss and every term while training; the labels' loss alone otherwise."""
        if not self.model.training:
            answer: Any = super().compute_loss(model, inputs, return_outputs=return_outputs)
            return answer
        if model is self.model:
            return self._joint_loss(inputs)
        return model(inputs)  # through DDP's forward, which prepares the reducer

    def _wrap_model(self, model: nn.Module, training: bool = True, **settings: Any) -> nn.Module:
        """What trains is moved, zeroed, clipped and synchronised: projectors with the student."""
        wrapped: nn.Module = super()._wrap_model(model, training=training, **settings)
        if training and self.accelerator.unwrap_model(wrapped) is self.model:
            wrapped = self.accelerator.prepare(self.compressed)
        return wrapped

    def autocast_smart_context_manager(self, *_: Any, **__: Any) -> AbstractContextManager[Any]:
        """Evaluation's too: it calls the student itself, which accelerate did not prepare."""
        made: AbstractContextManager[Any] = self.accelerator.autocast()
        return made

    def _joint_loss(self, inputs: dict[str, Tensor]) -> Tensor:
        sources = [c for c in self.compression if isinstance(c, LossSource)]
        with self.accelerator.autocast():
            trace = trace_causal_lm(self.model, inputs)
            step = Step(
                batch=inputs, student=trace, teacher=self.compressed.teacher,
                want=union_of_wants(sources), number=self.state.global_step,
            )  # fmt: skip
            if self.view.world_size > 1:
                count = torch.tensor(float(step.rows_N.numel()), device=trace.hidden_BLH.device)
                mean = self.accelerator.reduce(count, reduction="mean")
                step._count = mean.clamp(min=1.0)
            total, values = joint_loss(step, sources, label_weight=self.label_weight)
        for name, value in values.items():
            self.compressed.log(f"train/{name}", value)
        return total

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Backward, and then, before clipping, what callbacks do to gradients."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            for callback in self.compression:
                callback.on_before_optimizer_step(
                    self.view, self.compressed, self.view.optimizers[0]
                )
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's own optimizer class, over the groups that compressed students need."""
        if getattr(self, "optimizer", None) is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = parameter_groups(
                self.compressed, self.args.learning_rate, self.args.weight_decay
            )
            self.optimizer = kind([g for g in groups if g["params"]], **settings)
        made: torch.optim.Optimizer = self.optimizer
        return made

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the last value of each loss term."""
        terms = self.view.callback_metrics if "loss" in logs else {}
        super().log({**logs, **{k: float(v) for k, v in terms.items()}}, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        super()._save(str(folder), state_dict=plain_state_dict(self.model, transformed=False))
        if self.args.should_save:  # every rank comes here, and one makes the folder
            torch.save(self.compressed.extras(self.compression), folder / EXTRAS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.compressed.restore(Path(resume_from_checkpoint), self.compression)

    def _load_best_model(self) -> None:
        # whole: its plain weights alone would leave every transformed layer at the last step
        folder = Path(self.state.best_model_checkpoint)
        self.compressed.restore(folder, self.compression)
        stood = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        self.view.went_back_to = stood.global_step
        self._start_callbacks()  # what no tensor holds: quantisers may not have started by then

    def _start_callbacks(self) -> None:
        for callback in self.compression:
            callback.on_train_start(self.view, self.compressed)


class _Schedule(TrainerCallback):  # type: ignore[misc]
    """Tells the compression callbacks when training begins and when a step is over."""

    def __init__(self, trainer: CompressionTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self.trainer.view.went_back_to = None
        self.trainer._start_callbacks()

    def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        for callback in self.trainer.compression:
            callback.after_clipping()

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        for callback in self.trainer.compression:
            callback.on_train_batch_end(self.trainer.view, self.trainer.compressed)
