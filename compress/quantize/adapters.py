"""Low-rank adapters that train in place of the weight and are part of it when it is quantised.

Legend: O output rows, I input columns, R rank.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.errors import BadInput
from compress.transforms import (
    InputTransform,
    Stage,
    TransformRecord,
    WeightTransform,
    attach_transform,
)


class LowRankAdapter(WeightTransform):
    """`W + B A`, first in the chain: masks and quantisers see the sum, and so does the export.

    LoRA (Hu et al. 2021, arXiv 2106.09685) with the adapter inside the rounding, as in LR-QAT
    (Bondarenko et al. 2024, arXiv 2406.06385): nothing of it is left at inference.

    Args:
        weight: the dense weight (O, I), for its shape and size.
        rank: R; 1 is the least, min(O, I) can express any change.
        learning_rate_scale: multiple of the run's learning rate.
        seed: of the random half A; B starts at zero, so that nothing changes at first.

    Raises:
        BadInput: the rank is not between 1 and the weight's smaller side.
    """

    stage = Stage.ADAPT

    def __init__(
        self, weight: Tensor, *, rank: int, learning_rate_scale: float = 1.0, seed: int = 0
    ) -> None:
        """Draws A; keeps no reference to the weight."""
        super().__init__()
        rows, columns = weight.shape
        if not 1 <= rank <= min(rows, columns):
            raise BadInput(
                f"adapter_rank={rank}: a weight of {rows} x {columns} takes 1 to "
                f"{min(rows, columns)}; 0 trains the weights themselves"
            )
        generator = torch.Generator().manual_seed(seed)
        bound = math.sqrt(3.0 / columns)
        drawn = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        self.down_RI = nn.Parameter(drawn.to(weight.device))
        self.up_OR = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.rank, self.learning_rate_scale = rank, learning_rate_scale

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, in the weight's dtype."""
        return weight + (self.up_OR @ self.down_RI).to(weight.dtype)

    def scheme(self) -> TransformRecord:
        """Nothing that a file holds: the sum is what is exported."""
        return TransformRecord(kind="adapter", details={"rank": self.rank})


def adapt(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    *,
    rank: int,
    learning_rate_scale: float = 1.0,
    seed: int = 0,
) -> None:
    """Freeze every parameter of the model but those of transforms; train `layers` by adapters.

    The optimizer then holds `R (O + I)` values a layer instead of `O I`.

    Raises:
        BadInput: there is no layer, or the rank does not fit one.
    """
    if not layers:
        raise BadInput(f"adapter_rank={rank}: there is no layer to adapt")
    transforms = [m for m in model.modules() if isinstance(m, WeightTransform | InputTransform)]
    kept = {id(p) for transform in transforms for p in transform.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)
    for index, layer in enumerate(layers.values()):
        weight: Tensor = layer.weight  # type: ignore[assignment]
        adapter = LowRankAdapter(
            weight, rank=rank, learning_rate_scale=learning_rate_scale, seed=seed + index
        )
        attach_transform(layer, adapter)
