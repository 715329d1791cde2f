"""Distillation on what the student writes itself; generating is in `compress.distill`."""

from collections.abc import Iterator

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from compress.callbacks.base import CompressionCallback
from compress.callbacks.run_length import run_length
from compress.contract import Step, Want
from compress.distill.build import LogitSettings, teacher_term
from compress.distill.chunked import head_losses
from compress.distill.on_policy import continue_prompts, prompts_of
from compress.distill.paths import rows_of
from compress.errors import BadInput
from compress.models import trace_causal_lm
from compress.schedule import Moment, linear, steps_of
from compress.teachers.cached import CachedTeacher


class OnPolicyDistillation(CompressionCallback):
    """Lets the student continue some prompts of each batch and the teacher judge every token.

    The student is corrected where its own writing leads it, not only on the data's texts (GKD).
    `LogitsDistillation` beside it teaches on the data.

    Args:
        teacher_weight: factor of the loss; 0.0 is off: nothing is generated.
        share: share of a batch's rows that are continued, rounded; the same number on each rank.
        final_share: reached in a straight line after `share_steps`; None: constant.
        share_steps: optimizer steps of that line, or a fraction of the run.
        prompt_tokens: of plain text, the first tokens of a row; of instruction data, at most so
            many tokens before the answer.
        new_tokens: generated a row.
        sampling_temperature: of the student's draws; 0.0 takes the likeliest token.
        divergence: as for `LogitsDistillation`.
        beta: of `jensen_shannon`.
        temperature: of both distributions in the loss.
        seed: of the draws.
        name: of the loss term; default `on_policy`.

    Raises:
        BadInput: a setting is out of range, or the teacher cannot answer new texts.
    """

    uses_teacher = True

    def __init__(
        self,
        *,
        teacher_weight: float = 0.5,
        share: float = 0.25,
        final_share: float | None = None,
        share_steps: Moment = 1.0,
        prompt_tokens: int = 32,
        new_tokens: int = 32,
        sampling_temperature: float = 1.0,
        divergence: str = "jensen_shannon",
        beta: float = 0.5,
        temperature: float = 1.0,
        seed: int = 0,
        name: str = "",
    ) -> None:
        """Checks the settings."""
        super().__init__(name=name)
        self.settings = LogitSettings(
            teacher_weight=teacher_weight, divergence=divergence, beta=beta, temperature=temperature
        )
        self.share, self.final_share, self.share_steps = share, final_share, share_steps
        self.prompt_tokens, self.new_tokens = prompt_tokens, new_tokens
        self.sampling_temperature, self.seed = sampling_temperature, seed
        shares = (share, share if final_share is None else final_share)
        if not 0 <= min(shares) <= max(shares) <= 1:
            raise BadInput(f"share and final_share lie in [0, 1]: {shares}")
        if min(prompt_tokens, new_tokens) < 1 or sampling_temperature < 0:
            raise BadInput("prompt_tokens and new_tokens are 1 or more, temperatures 0 or more")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses teachers that know only the data; a fraction of the run becomes steps."""
        if isinstance(pl_module.teacher, CachedTeacher):
            raise BadInput("a cached teacher knows the data's texts alone: use teacher.host=local")
        if self.final_share is not None:
            self.share_steps = steps_of(self.share_steps, total=run_length(trainer))
        super().setup(trainer, pl_module, stage)

    def share_at(self, step: int) -> float:
        """The share of rows at an optimizer step."""
        if self.final_share is None:
            return self.share
        return linear(step, start=0, stop=self.share_steps, first=self.share, last=self.final_share)

    def losses(self, step: Step) -> Iterator[tuple[str, Tensor]]:
        """One tensor: the mean over the tokens that the student wrote."""
        rows = int(self.share_at(step.number) * step.batch["input_ids"].shape[0] + 0.5)
        if rows and self.settings.teacher_weight:
            own = self.written(step, rows)
            term = teacher_term(own, self.settings)
            yield self.name or "on_policy", head_losses(own, {"on_policy": term})[0]

    def written(self, step: Step, rows: int) -> Step:
        """A step on the student's own continuations of the first rows (batches are shuffled)."""
        few = rows_of(step.batch, torch.arange(rows))
        prompts_BP, mask_BP = prompts_of(few, prompt_tokens=self.prompt_tokens)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        batch = continue_prompts(
            self._attached_to, prompts_BP, mask_BP, new_tokens=self.new_tokens,
            temperature=self.sampling_temperature,
            seed=(self.seed * 1_000_003 + step.number) * 1_000_003 + rank,
        )  # fmt: skip
        return Step(
            batch=batch, student=trace_causal_lm(self._attached_to, batch), teacher=step.teacher,
            want=Want(logits=True), number=step.number,
        )  # fmt: skip
