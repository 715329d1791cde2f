"""Distillation of the teacher's next-token distribution; the losses are in `compress.distill`."""

from collections.abc import Iterator
from typing import Any

from lightning import LightningModule, Trainer

from compress.callbacks.base import CompressionCallback
from compress.contract import LogitTerm, Step, Want
from compress.distill.build import LogitSettings, teacher_term
from compress.distill.further_teachers import as_teacher


class LogitsDistillation(CompressionCallback):
    """Pulls the student's next-token distribution towards the teacher's, token by token.

    Works with every teacher: live ones give whole distributions, stored ones K tokens a position.
    The labels' own weight is the module's `label_weight`.

    Args:
        teacher_weight: factor of the term; 0.0 costs nothing, not even a teacher pass.
        divergence: `forward_kl`, `reverse_kl`, `jensen_shannon`, `skewed_kl`,
            `skewed_reverse_kl` or `total_variation`.
        temperature: softens both distributions; 1.0 compares them as they are.
        final_temperature: reached in a straight line after `temperature_steps`; None: constant.
        temperature_steps: optimizer steps of that line; 0 with a constant temperature.
        scale_by_temperature_squared: True multiplies the loss by T^2 (Hinton et al. 2015).
        beta: teacher's share in the mixture of `jensen_shannon`, in (0, 1).
        skew: of `skewed_kl` and `skewed_reverse_kl`, in [0, 1); 0.0 is the plain divergence.
        top_k: compare the teacher's K likeliest tokens; 0 compares the whole vocabulary, or all
            that a stored or served teacher gives.
        tail: the other tokens are one `bucket`, or left out (`renormalize`).
        vocab_size: the tokenizer's size where heads are padded beyond it; None: the smaller head.
        alignment: `same` tokenizer, or `uld` for vocabularies that share nothing: in your own
            code, which feeds both so that positions correspond; a recipe's run has one tokenizer.
        teacher: another teacher than the run's: a checkpoint's folder, its hub name, or a
            `Teacher`; several of these callbacks, each with a name, learn from several teachers.
        name: of the loss term; default `logits`.

    Raises:
        BadInput: a setting is unknown or out of range, or two contradict each other.
    """

    uses_teacher = True

    def __init__(
        self,
        *,
        teacher_weight: float = 0.5,
        divergence: str = "forward_kl",
        temperature: float = 1.0,
        final_temperature: float | None = None,
        temperature_steps: int = 0,
        scale_by_temperature_squared: bool = True,
        beta: float = 0.5,
        skew: float = 0.1,
        top_k: int = 0,
        tail: Any = "bucket",
        vocab_size: int | None = None,
        alignment: Any = "same",
        teacher: Any = None,
        name: str = "",
    ) -> None:
        """Checks the settings."""
        super().__init__(name=name)
        self.settings = LogitSettings(
            teacher_weight=teacher_weight, divergence=divergence, temperature=temperature,
            final_temperature=final_temperature, temperature_steps=temperature_steps,
            scale_by_temperature_squared=scale_by_temperature_squared, beta=beta, skew=skew,
            top_k=top_k, tail=tail, vocab_size=vocab_size, alignment=alignment,
        )  # fmt: skip

        self.teacher = teacher

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Loads a teacher of its own."""
        if self.teacher is not None:
            self.teacher = as_teacher(self.teacher)
        super().setup(trainer, pl_module, stage)

    def want(self) -> Want:
        """The run's teacher's logits, unless they have no weight or another teacher gives them."""
        return Want(logits=self.settings.teacher_weight > 0 and self.teacher is None)

    def losses(self, step: Step) -> Iterator[tuple[str, LogitTerm]]:
        """One logit term."""
        if self.settings.teacher_weight > 0:
            own = self.teacher
            signal = None if own is None else own.signal(step.batch, Want(logits=True))
            yield self.name or "logits", teacher_term(step, self.settings, signal=signal)
