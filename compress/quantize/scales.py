"""Learned scales: what weight and input quantisers share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

SCALE_MODES = ("learned", "tracked", "fixed")


class Scales(nn.Module):
    """`base_scale * exp(log_step)`, fp32 even where the model is cast, and its freezing."""

    base_scale: Tensor | None
    log_step: nn.Parameter | None
    frozen: bool

    def learned_scale(self) -> Tensor:
        """The scale before it is rounded to what the runtime loads."""
        assert self.base_scale is not None
        if self.log_step is None:
            return self.base_scale
        if self.frozen:
            # exp(0) is exactly 1; the zero keeps the parameter in the graph, as DDP demands
            return self.base_scale * torch.exp(self.log_step - self.log_step.detach())
        return self.base_scale * torch.exp(self.log_step)

    @torch.no_grad()
    def freeze(self) -> None:
        """Keep the scale as it is: what the optimizer does to `log_step` counts no more."""
        if self.base_scale is not None and self.log_step is not None and not self.frozen:
            self.base_scale.mul_(torch.exp(self.log_step))
        self.frozen = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Scales":
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self
