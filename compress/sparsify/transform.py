"""The mask in a weight's chain: which entries are used, and which may learn."""

from typing import Any

import torch
from torch import Tensor

from compress.sparsify.masks import Pattern, pack_bits, unpack_bits
from compress.transforms import Stage, TransformRecord, WeightTransform, apply_mask

MASKS = ("forward_mask", "backward_mask", "explored")


class MaskWeight(WeightTransform):
    """used = weight * forward_mask; gradient = gradient * backward_mask.

    Forward equal to backward: static masks, SET (Mocanu 2018), RigL (Evci 2020). Backward a
    superset: Top-KAST (Jayakumar 2020). Backward all ones (`dense_backward`): SR-STE (Zhou 2021),
    whose decay pulls unused entries to zero: decay * weight where `pulled_mask` says.

    Args:
        weight: the trained weight; masks take its shape and device, and start as all ones.
        pattern: what the masks keep to; only reported.
        superset: keep a backward mask of its own.
        decay: pull on entries that learn but are not used; 0.0 is a plain straight-through.
    """

    stage = Stage.MASK
    forward_mask: Tensor
    backward_mask: Tensor | None
    explored: Tensor

    def __init__(
        self,
        weight: Tensor,
        *,
        pattern: str = "unstructured",
        superset: bool = False,
        decay: float = 0.0,
    ) -> None:
        """All ones: the weight is used as it is."""
        super().__init__()
        self.pattern, self.decay, self.dense_backward = Pattern.parse(pattern), decay, False
        self.runs = (self.pattern.rows, max(self.pattern.columns, self.pattern.group))
        ones = torch.ones_like(weight, dtype=torch.bool)
        self.register_buffer("forward_mask", ones)
        self.register_buffer("backward_mask", ones.clone() if superset else None)
        self.register_buffer("explored", torch.zeros_like(ones))

    @property
    def learning_mask(self) -> Tensor | None:
        """Entries that receive a gradient; None where all do."""
        if self.dense_backward:
            return None
        return self.forward_mask if self.backward_mask is None else self.backward_mask

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight."""
        if self.learning_mask is self.forward_mask:
            return apply_mask(weight, self.forward_mask)
        used: Tensor = _Mask.apply(weight, self.forward_mask, self.learning_mask)  # type: ignore[no-untyped-call]
        return used

    @property
    def pulled_mask(self) -> Tensor | None:
        """Entries that learn but are not used: SR-STE's decay pulls them; None without a decay.

        The pull is no part of the backward: there it would count once for each micro-batch and in
        the norm that clipping looks at, and outweigh the loss.
        """
        learning = self.learning_mask
        if not self.decay or learning is self.forward_mask:
            return None
        return ~self.forward_mask if learning is None else learning & ~self.forward_mask

    def scheme(self) -> TransformRecord:
        """The mask, its pattern and its density."""
        details: dict[str, Any] = {
            "pattern": self.pattern.name,
            "density": self.forward_mask.float().mean().item(),
        }
        if self.pattern.name == "block":
            details["block"] = [self.pattern.rows, self.pattern.columns]
        return TransformRecord(
            kind="mask", tensors={"mask": self.forward_mask.clone()}, details=details
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key in self._mask_keys(prefix, destination):
            destination[key] = pack_bits(destination[key])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for key in self._mask_keys(prefix, state_dict):
            shape = self.forward_mask.shape
            state_dict[key] = unpack_bits(state_dict[key], shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def _mask_keys(prefix: str, state: Any) -> list[str]:
        return [prefix + name for name in MASKS if prefix + name in state]


class _Mask(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, used: Tensor, learning: Tensor | None) -> Tensor:
        ctx.save_for_backward(learning)
        return apply_mask(weight, used)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (learning,) = ctx.saved_tensors
        return (gradient if learning is None else apply_mask(gradient, learning)), None, None
