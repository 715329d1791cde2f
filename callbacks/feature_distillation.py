"""Distillation of inner features; losses, layer maps and projectors are in `compress.distill`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning import LightningModule, Trainer
from torch import Tensor, nn

from compress.callbacks.base import CompressionCallback
from compress.contract import Step, Want
from compress.distill.balance import DetachedRatio
from compress.distill.build_features import build_feature_loss
from compress.distill.features import FeatureLoss
from compress.errors import BadInput
from compress.taps import taps_of


class FeatureDistillation(CompressionCallback):
    """Pulls features inside the student towards features inside the teacher.

    Projectors between unequal widths train with the student; they live on the LightningModule as
    `<term>_projectors`, so they are in the optimizer and the checkpoint and never in an export.

    Args:
        weight: factor of the loss (with `balance_to`: its size over that term's); 0.0 is off.
        loss: `mse`, `cosine`, `attention_transfer` or `relations`.
        pairs: student module name to teacher module name; None: by `layer_map`.
        layer_map: `uniform`, `last` or `skip`.
        within: modules inside each layer (`[self_attn.q_proj]`); empty: the layer's output.
        relation_heads: of `relations`; 1 relates whole features.
        balance_to: the loss term whose size this one keeps, by a detached ratio; "": none.
        seed: of the projectors' start.
        name: of the loss term; default `features`.

    Raises:
        BadInput: a setting is unknown, or a pair cannot be found.
    """

    uses_teacher = True

    def __init__(
        self,
        *,
        weight: float = 1.0,
        loss: str = "mse",
        pairs: Mapping[str, str] | None = None,
        layer_map: str = "uniform",
        within: Sequence[str] = (),
        relation_heads: int = 1,
        balance_to: str = "",
        seed: int = 0,
        name: str = "",
    ) -> None:
        """Keeps the settings; pairs are found when the student is there."""
        super().__init__(name=name)
        self.weight, self.loss, self.layer_map, self.within = weight, loss, layer_map, list(within)
        self.pairs = None if pairs is None else dict(pairs)
        self.relation_heads, self.balance_to, self.seed = relation_heads, balance_to, seed
        self.term, self.ratio = name or "features", DetachedRatio()
        self.feature_loss: FeatureLoss | None = None
        self._last: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the pairs in both models and puts the projectors where the optimizer sees them."""
        if self._attached_to is not pl_module.student:
            self.feature_loss = build_feature_loss(
                pl_module.student, pl_module.teacher, kind=self.loss, pairs=self.pairs,
                layer_map=self.layer_map, within=self.within, heads=self.relation_heads,
                seed=self.seed,
            )  # fmt: skip
            pl_module.add_module(f"{self.term}_projectors", self.feature_loss)
        super().setup(trainer, pl_module, stage)

    def attach(self, student: nn.Module) -> None:
        """Opens the student's taps, before compiling."""
        taps_of(student).open(self.feature_loss.pairs)

    def want(self) -> Want:
        """The teacher's side of each pair."""
        return Want(features=tuple(self.feature_loss.pairs.values()) if self.weight else ())

    def losses(self, step: Step) -> Iterator[tuple[str, Tensor]]:
        """One tensor."""
        if self.weight:
            tokens = step.batch["input_ids"]
            mask_BL = step.batch.get("attention_mask", tokens.new_ones(tokens.shape))
            loss = self.feature_loss(step.student.features, step.signal.features, mask_BL)
            self._last = loss.detach()
            yield (
                self.term,
                self.weight * loss * (self.ratio.factor(loss) if self.balance_to else 1),
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Lets the ratio follow both losses."""
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        if self.balance_to and self._last is not None:
            logged = trainer.callback_metrics.get(f"train/{self.balance_to}")
            if logged is None:
                raise BadInput(f"balance_to={self.balance_to!r} is no loss term of this run")
            self.ratio.update(loss=self._last, reference=logged)

    def state_dict(self) -> dict[str, Any]:
        """The running means of the ratio."""
        return {**super().state_dict(), "ratio": self.ratio.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them up again."""
        super().load_state_dict(state_dict)
        self.ratio.load_state_dict(state_dict["ratio"])
