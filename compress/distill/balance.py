"""Keeping one loss in a fixed proportion to another, without a gradient through the proportion."""

import torch
from torch import Tensor


class DetachedRatio:
    """The factor that makes a loss as large as a reference, by running means of both.

    Until both were seen once the factor makes the loss 1, whatever its unit. A step in which
    either is no number leaves no trace.

    Args:
        decay: of the running means; 0.0 takes the last value, near 1.0 hardly follows.
    """

    def __init__(self, *, decay: float = 0.9) -> None:
        self.decay = decay
        self._means: dict[str, Tensor] = {}

    def factor(self, loss: Tensor) -> Tensor:
        """Reference / loss, detached."""
        if "reference" not in self._means:
            return 1.0 / loss.detach().clamp(min=1e-12)
        return self._means["reference"] / self._means["loss"].clamp(min=1e-12)

    def update(self, *, loss: Tensor, reference: Tensor) -> None:
        """Take in the values of one step, where both are numbers."""
        seen = {"loss": loss.detach().float(), "reference": reference.detach().float()}
        if not all(bool(torch.isfinite(value)) for value in seen.values()):
            return  # a running mean never forgets a NaN
        for key, value in seen.items():
            mean = self._means.get(key, value)
            self._means[key] = torch.lerp(value, mean.to(value.device), self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The running means."""
        return {key: value.cpu() for key, value in self._means.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up the running means of another run."""
        self._means = dict(state)
