"""Which parameters learn how: the groups of any optimizer that trains a compressed student."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from compress.transforms import InputTransform, WeightTransform


def parameter_groups(
    module: nn.Module, learning_rate: float, weight_decay: float
) -> Iterator[dict[str, Any]]:
    """Optimizer groups: matrices decay, vectors do not, transforms learn at a rate of their own."""
    own: dict[float, list[nn.Parameter]] = {}
    for part in module.modules():
        if isinstance(part, WeightTransform | InputTransform):
            own.setdefault(part.learning_rate_scale, []).extend(part.parameters())
    taken = {id(p) for parameters in own.values() for p in parameters}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    yield {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay}
    yield {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0}
    for scale, parameters in own.items():
        # fused layers share a scale: it must not be stepped twice
        learned = list({id(p): p for p in parameters if p.requires_grad}.values())
        if learned:
            yield {"params": learned, "lr": learning_rate * scale, "weight_decay": 0.0}
