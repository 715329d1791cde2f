"""A model and its optimizers as they stood, in memory: what a guard goes back to."""

import copy
from collections.abc import Sequence

import torch
from torch import nn


class Snapshot:
    """A model and its optimizers as they were, kept in memory."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Copies everything: as many bytes again as weights and optimizer hold."""
        self.model = {name: t.detach().clone() for name, t in model.state_dict().items()}
        self.optimizers = [copy.deepcopy(o.state_dict()) for o in optimizers]

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Puts everything back but learning rates and the like; gradients are dropped."""
        model.load_state_dict(self.model)
        for optimizer, state in zip(optimizers, self.optimizers, strict=True):
            now = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
            optimizer.load_state_dict(copy.deepcopy(state))
            # their schedules go on from where they are; some only multiply what they find
            for group, settings in zip(optimizer.param_groups, now, strict=True):
                group.update(settings)
            optimizer.zero_grad(set_to_none=True)
