"""The weight quantiser: last in the chain of a layer's weight transforms."""

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor, nn

from compress.errors import BadInput
from compress.quantize.fake_quantize import fake_quantize
from compress.quantize.grid import (
    grid_of,
    largest_magnitude,
    merge,
    scale_shape,
    split,
    split_scale,
)
from compress.quantize.observers import initial_scale, nvfp4_global_scale, require_finite
from compress.quantize.scales import SCALE_MODES, Scales
from compress.transforms import Stage, TransformRecord, WeightTransform


class QuantizeWeight(Scales, WeightTransform):
    """Rounds a weight to the grid of its scheme.

    `scale = base * exp(log_step)`, so that a step of the optimizer changes every scale by the same
    share, whatever its size; rounded to the dtype that the runtime loads.

    Args:
        weight: the dense weight (O, I), for shapes and the first scales.
        args: format and what shares a scale.
        scales: `learned` (LSQ), `tracked` (largest magnitude of the present weight, at each step)
            or `fixed` (as initialised).
        init: first scales: `rtn`, `mse` or `percentile` (see `observers.initial_scale`).
        scale_dtype: what integer and FP8 scales are stored in; None is fp32 for 8 bits and the
            weight's dtype below, as vLLM loads them.
        learning_rate_scale: multiple of the run's learning rate that the scales learn at.
        pass_saturated: let gradients of weights outside the range through (straight-through).
        name: the layer, for messages.

    Raises:
        BadInput: the weight holds NaN or infinities, or a setting is unknown.
    """

    stage = Stage.QUANTIZE

    def __init__(
        self,
        weight: Tensor,
        *,
        args: QuantizationArgs,
        scales: str = "learned",
        init: str = "rtn",
        scale_dtype: torch.dtype | None = None,
        learning_rate_scale: float = 1.0,
        pass_saturated: bool = False,
        name: str = "weight",
    ) -> None:
        """Computes the first scales from `weight`; keeps no reference to it."""
        super().__init__()
        if scales not in SCALE_MODES:
            raise BadInput(f"scales={scales!r} is unknown; use one of {', '.join(SCALE_MODES)}")
        stored = scale_dtype or (torch.float32 if args.num_bits == 8 else weight.dtype)
        self.args, self.grid, self.scales = args, grid_of(args, scale_dtype=stored), scales
        self.scale_dtype, self.name, self.pass_saturated = stored, name, pass_saturated
        self.learning_rate_scale, self.enabled, self.frozen = learning_rate_scale, True, False
        shape = scale_shape(args, weight)
        self.register_buffer("base_scale", torch.ones(shape, device=weight.device))
        global_scale = torch.ones(1, device=weight.device) if self._two_level else None
        self.register_buffer("global_scale", global_scale)
        learned = nn.Parameter(torch.zeros(shape, device=weight.device))
        self.register_parameter("log_step", learned if scales == "learned" else None)
        self.initialize(weight.detach(), init=init)

    base_scale: Tensor
    global_scale: Tensor | None
    log_step: nn.Parameter | None

    @property
    def _two_level(self) -> bool:
        return bool(self.args.strategy == "tensor_group")

    @torch.no_grad()
    def initialize(self, weight: Tensor, *, init: str = "rtn", percentile: float = 0.999) -> None:
        """Scales anew from a weight, learned changes forgotten."""
        require_finite(weight, self.name)
        if self.global_scale is not None:
            self.global_scale.copy_(nvfp4_global_scale(weight.abs().max()))
        self.set_scale(
            initial_scale(
                weight, self.args, self.grid, init=init, global_scale=self.global_scale,
                percentile=percentile, name=self.name,
            )
        )  # fmt: skip

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Take these scales (in the file's layout), learned changes forgotten."""
        self.base_scale.copy_(scale)
        if self.log_step is not None:
            self.log_step.zero_()

    def scale(self, weight: Tensor | None = None) -> Tensor:
        """The scale before rounding, in the file's layout; `weight` is looked at when tracked."""
        if self.scales == "tracked" and weight is not None and not self.frozen:
            with torch.no_grad():
                # remembered, so that a freeze and the export see the scale of the last step
                self.base_scale.copy_(self.grid.scale_of(largest_magnitude(self.args, weight)))
            return self.base_scale.clone()
        return self.learned_scale()

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid; unchanged while `enabled` is off."""
        if not self.enabled:
            return weight
        learning = self.scales == "learned" and not self.frozen
        scale = self.base_scale if learning else self.scale(weight)
        used = fake_quantize(
            split(self.args, weight), split_scale(self.args, scale), grid=self.grid,
            global_scale=self.global_scale, pass_saturated=self.pass_saturated,
            log_step=split_scale(self.args, self.log_step) if learning else None,  # type: ignore[arg-type]
        )  # fmt: skip
        return merge(self.args, used)

    @torch.no_grad()
    def stored_scale(self, weight: Tensor | None = None) -> Tensor:
        """The scale as the file holds it, in fp32 (two-level: before division)."""
        scale = self.grid.stored_scale(self.scale(weight).float(), self.global_scale)
        require_finite(scale, f"{self.name}: scale")
        return scale

    def scheme(self) -> TransformRecord:
        """Arguments and scale tensors for a compressor; `enabled` off: leave it dense."""
        tensors = {"scale": self.stored_scale().to(self.scale_dtype)}
        if self.global_scale is not None:
            tensors = {"scale": self.stored_scale(), "global_scale": self.global_scale.clone()}
        details = {"scales": self.scales, "enabled": self.enabled, "scale_dtype": self.scale_dtype}
        return TransformRecord(kind="quantize", args=self.args, tensors=tensors, details=details)
