"""The input quantiser: at a layer's `input_quantizer`, or on the keys and values of attention."""

from collections.abc import Callable
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor, nn

from compress.errors import BadInput
from compress.quantize.fake_quantize import fake_quantize, fake_quantize_dynamic
from compress.quantize.grid import grid_of, merge, split
from compress.quantize.magnitudes import BUCKETS, clipping_point, count_magnitudes
from compress.quantize.observers import nvfp4_global_scale
from compress.quantize.scales import Scales
from compress.transforms import InputTransform, TransformRecord


class Shared:
    """One rounding for layers that read one tensor: the first computes, the last one clears.

    Args:
        readers: layers that read it, one after another.
    """

    def __init__(self, readers: int) -> None:
        """Holds nothing yet."""
        self.readers, self._left = readers, 0
        self._values: Tensor | None = None
        self._used: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        """An empty one: what is held belongs to a forward pass of the original."""
        memo[id(self)] = copied = Shared(self.readers)
        return copied

    def take(self, values: Tensor) -> Tensor | None:
        """What was made of this very tensor, if it was; the last reader leaves nothing behind."""
        if self._values is not values:
            return None
        used, self._left = self._used, self._left - 1
        if self._left == 0:
            self._values = self._used = None
        return used

    def keep(self, values: Tensor, used: Tensor) -> None:
        """Note what was made of a tensor, for the other readers."""
        self._values, self._used, self._left = values, used, self.readers - 1


def _everything(values: Tensor) -> Tensor:
    return values


class QuantizeInput(Scales, InputTransform):
    """Rounds a layer's input: with a scale per token as it runs, or one calibrated scale.

    Args:
        args: format; `dynamic` or a static scale per tensor.
        scales: of a static scale: `learned` (LSQ) or `fixed` after calibration.
        observer: how calibration finds a static scale, see `magnitudes.clipping_point`.
        percentile: for `observer=percentile`.
        learning_rate_scale: multiple of the run's learning rate that the scale learns at.
        pass_saturated: let gradients of inputs outside the range through (straight-through).
        positions: the dimension of the input that counts positions.
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
        observer: str = "minmax",
        percentile: float = 0.9999,
        learning_rate_scale: float = 1.0,
        pass_saturated: bool = False,
        positions: int = 1,
        name: str = "input",
        device: Any = None,
    ) -> None:
        """A static quantiser must be calibrated before its first forward."""
        super().__init__()
        self.args, self.grid, self.name = args, grid_of(args), name
        self.learning_rate_scale, self.enabled, self.frozen = learning_rate_scale, True, False
        self.observer, self.percentile, self.pass_saturated = observer, percentile, pass_saturated
        self.observing, self.ready = False, args.dynamic is True
        self._counts: Tensor | None = None
        self._positions = positions
        self._real: Callable[[Tensor], Tensor] = _everything
        self.shared: Shared | None = None
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
    def observe(self, real: Callable[[Tensor], Tensor] | None = None) -> None:
        """Begin to note the largest magnitude, values passing through unchanged.

        Args:
            real: of values with their positions second, those that are no padding; None: all.
        """
        assert self.observed is not None
        self.observed.zero_()
        self._counts = torch.zeros(BUCKETS, dtype=torch.int64, device=self.observed.device)
        self.observing, self._real = True, real or _everything

    @torch.no_grad()
    def calibrated(self) -> None:
        """Ends observation: what was seen becomes the scale.

        Raises:
            BadInput: nothing finite was seen.
        """
        if self.observed is None:
            return
        if not bool(torch.isfinite(self.observed).all()) or float(self.observed) == 0.0:
            raise BadInput(f"{self.name}: calibration saw no finite, non-zero input; use real data")
        assert self._counts is not None
        self.observing, self.ready, self._real = False, True, _everything
        if self.base_scale is not None:
            end = clipping_point(
                self.observed, self._counts, self.grid, observer=self.observer,
                percentile=self.percentile,
            )  # fmt: skip
            self.base_scale.copy_(self.grid.scale_of(end))
        self._counts = None
        if self.global_scale is not None:
            self.global_scale.copy_(nvfp4_global_scale(self.observed))
        if self.log_step is not None:
            self.log_step.zero_()

    def forward(self, values: Tensor) -> Tensor:
        """The input on its grid; unchanged while `enabled` is off, and until it is calibrated."""
        if self.observing:
            self._look_at(values)
            return values
        if not (self.enabled and self.ready):
            return values
        # a compiler finds equal work by itself
        shared = None if torch.compiler.is_compiling() else self.shared
        found = shared.take(values) if shared is not None else None
        if found is not None:
            return found
        used = self._rounded(values)
        if shared is not None:
            shared.keep(values, used)
        return used

    def _rounded(self, values: Tensor) -> Tensor:
        if self.args.dynamic is False:
            return fake_quantize(
                values, self.learned_scale(), grid=self.grid, pass_saturated=self.pass_saturated
            )
        parts = split(self.args, values)
        used = fake_quantize_dynamic(parts, grid=self.grid, global_scale=self.global_scale)
        return merge(self.args, used)

    @torch.no_grad()
    def _look_at(self, values: Tensor) -> None:
        assert self.observed is not None
        assert self._counts is not None
        real = self._real(values.movedim(self._positions, 1) if self._positions != 1 else values)
        if real.numel():
            self.observed.copy_(torch.maximum(self.observed, real.abs().max().float()))
            self._counts += count_magnitudes(real)

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
