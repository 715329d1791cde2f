"""Quantisers as transforms: of a layer's weight and of its input.

`QuantizeWeight` stands last in the chain of weight transforms; `QuantizeInput` at the layer's
`input_quantizer`. Both give exporters plain data by `scheme()`.
"""

from collections.abc import Callable
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor, nn

from compress.errors import BadInput
from compress.quantize.fake_quantize import fake_quantize, fake_quantize_dynamic
from compress.quantize.grid import (
    grid_of,
    largest_magnitude,
    merge,
    scale_shape,
    split,
    split_scale,
)
from compress.quantize.observers import initial_scale, nvfp4_global_scale, require_finite
from compress.transforms import InputTransform, Stage, TransformRecord, WeightTransform

SCALE_MODES = ("learned", "tracked", "fixed")


class _Scales(nn.Module):
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Scales":
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)
        return self


class QuantizeWeight(_Scales, WeightTransform):
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
        name: str = "weight",
    ) -> None:
        """Computes the first scales from `weight`; keeps no reference to it."""
        super().__init__()
        if scales not in SCALE_MODES:
            raise BadInput(f"scales={scales!r} is unknown; use one of {', '.join(SCALE_MODES)}")
        stored = scale_dtype or (torch.float32 if args.num_bits == 8 else weight.dtype)
        self.args, self.grid, self.scales = args, grid_of(args, scale_dtype=stored), scales
        self.scale_dtype, self.name = stored, name
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
        parts, scale = split(self.args, weight), split_scale(self.args, self.scale(weight))
        used = fake_quantize(parts, scale, grid=self.grid, global_scale=self.global_scale)
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


class QuantizeInput(_Scales, InputTransform):
    """Rounds a layer's input: with a scale per token as it runs, or one calibrated scale.

    Args:
        args: format; `dynamic` or a static scale per tensor.
        scales: of a static scale: `learned` (LSQ) or `fixed` after calibration.
        learning_rate_scale: multiple of the run's learning rate that the scale learns at.
        name: the layer, for messages.
    """

    observed: Tensor | None
    base_scale: Tensor | None
    global_scale: Tensor | None
    log_step: nn.Parameter | None

    def __init__(
        self,
        *,
        args: QuantizationArgs,
        scales: str = "learned",
        learning_rate_scale: float = 1.0,
        name: str = "input",
        device: Any = None,
    ) -> None:
        """A static quantiser must be calibrated before its first forward."""
        super().__init__()
        self.args, self.grid, self.name = args, grid_of(args), name
        self.learning_rate_scale, self.enabled, self.frozen = learning_rate_scale, True, False
        self.observing, self.ready = False, args.dynamic is True
        static = args.dynamic is False
        two_level = args.strategy == "tensor_group"
        zero = torch.zeros(1, device=device)
        self.register_buffer("observed", zero if static or two_level else None)
        self.register_buffer("base_scale", zero.clone() if static else None)
        self.register_buffer("global_scale", zero.clone() if two_level else None)
        learned = nn.Parameter(zero.clone()) if static and scales == "learned" else None
        self.register_parameter("log_step", learned)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.observed is not None:
            self.ready = bool(self.observed > 0)

    @property
    def needs_calibration(self) -> bool:
        """Whether a scale must be found from data before the first step."""
        return self.observed is not None

    @torch.no_grad()
    def observe(self) -> None:
        """Begin to note the largest magnitude, values passing through unchanged."""
        assert self.observed is not None
        self.observed.zero_()
        self.observing = True

    @torch.no_grad()
    def calibrated(self) -> None:
        """Ends observation: the largest magnitude seen becomes the scale.

        Raises:
            BadInput: nothing finite was seen.
        """
        if self.observed is None:
            return
        if not bool(torch.isfinite(self.observed).all()) or float(self.observed) == 0.0:
            raise BadInput(f"{self.name}: calibration saw no finite, non-zero input; use real data")
        self.observing, self.ready = False, True
        if self.base_scale is not None:
            self.base_scale.copy_(self.grid.scale_of(self.observed))
        if self.global_scale is not None:
            self.global_scale.copy_(nvfp4_global_scale(self.observed))
        if self.log_step is not None:
            self.log_step.zero_()

    def forward(self, values: Tensor) -> Tensor:
        """The input on its grid; unchanged while `enabled` is off, and until it is calibrated."""
        if self.observing:
            assert self.observed is not None
            with torch.no_grad():
                self.observed.copy_(torch.maximum(self.observed, values.abs().max().float()))
            return values
        if not (self.enabled and self.ready):
            return values
        if self.args.dynamic is False:
            return fake_quantize(values, self.learned_scale(), grid=self.grid)
        parts = split(self.args, values)
        used = fake_quantize_dynamic(parts, grid=self.grid, global_scale=self.global_scale)
        return merge(self.args, used)

    @torch.no_grad()
    def scheme(self) -> TransformRecord:
        """Arguments, and the static or global scale; none before it is calibrated."""
        tensors: dict[str, Tensor] = {}
        if self.base_scale is not None and self.ready:
            tensors["scale"] = self.learned_scale().clone()
        if self.global_scale is not None and self.ready:
            tensors["global_scale"] = self.global_scale.clone()
        details = {"enabled": self.enabled, "calibrated": self.ready}
        return TransformRecord(kind="quantize", args=self.args, tensors=tensors, details=details)
