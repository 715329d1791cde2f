"""The smallest transforms that keep the contract: what exporters must handle, nothing more."""

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from compressed_tensors.quantization.utils import (
    calculate_qparams,
    compute_dynamic_scales_and_zp,
    generate_gparam,
)
from torch import Tensor, nn

from compress.targets import choose_layers
from compress.transforms import (
    InputTransform,
    Stage,
    TransformRecord,
    WeightTransform,
    attach_input_quantizer,
    attach_transform,
)


class FakeMask(WeightTransform):
    """Keeps the larger half of each row."""

    stage = Stage.MASK

    def __init__(self, weight: Tensor, *, pattern: str = "unstructured") -> None:
        super().__init__()
        self.pattern = pattern
        threshold = weight.detach().abs().median(dim=-1, keepdim=True).values
        self.register_buffer("mask", weight.detach().abs() > threshold)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def scheme(self) -> TransformRecord:
        return TransformRecord(
            kind="mask", tensors={"mask": self.mask}, details={"pattern": self.pattern}
        )


class FakeAdapter(WeightTransform):
    """A rank-one addition."""

    stage = Stage.ADAPT

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.full((weight.shape[0], 1), 0.01))
        self.column = nn.Parameter(torch.linspace(-1, 1, weight.shape[1])[None])

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.row @ self.column

    def scheme(self) -> TransformRecord:
        return TransformRecord(kind="adapter")


class FakeQuantizer(WeightTransform):
    """Min-max scales by compressed-tensors' own formulas, from the weight it is given."""

    stage = Stage.QUANTIZE

    def __init__(self, args: QuantizationArgs, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.args = args
        low, high = extremes(weight.detach(), args)
        self.global_scale = None
        if args.strategy == "tensor_group":
            self.global_scale = generate_gparam(weight.detach().min(), weight.detach().max())
        scale, _ = calculate_qparams(low, high, args, global_scale=self.global_scale)
        narrow = dtype if self.global_scale is None else torch.float32
        self.register_buffer("scale", scale.float().to(narrow).float())

    def forward(self, weight: Tensor) -> Tensor:
        used = fake_quantize(
            weight.float(), self.scale, None, self.args, global_scale=self.global_scale
        )
        return used.to(weight.dtype)

    def scheme(self) -> TransformRecord:
        tensors = {"scale": self.scale}
        if self.global_scale is not None:
            tensors["global_scale"] = self.global_scale
        return TransformRecord(kind="quantize", args=self.args, tensors=tensors)


class FakeInput(InputTransform):
    """Dynamic or static input quantisation by compressed-tensors' own formulas."""

    def __init__(self, args: QuantizationArgs) -> None:
        super().__init__()
        self.args = args
        self.register_buffer("static_scale", torch.tensor([0.02]))
        self.register_buffer("global_scale", torch.tensor([300.0]))

    def forward(self, value: Tensor) -> Tensor:
        if self.args.dynamic is False:
            return fake_quantize(value, self.static_scale, None, self.args)
        shared = self.global_scale if self.args.dynamic == "local" else None
        scale, zero = compute_dynamic_scales_and_zp(value, self.args, self, global_scale=shared)
        return fake_quantize(value, scale, zero, self.args, global_scale=shared)

    def scheme(self) -> TransformRecord:
        tensors = {}
        if self.args.dynamic is False:
            tensors["scale"] = self.static_scale
        elif self.args.dynamic == "local":
            tensors["global_scale"] = self.global_scale
        return TransformRecord(kind="quantize", args=self.args, tensors=tensors)


def extremes(weight: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    if args.strategy in ("group", "tensor_group"):
        weight = weight.unflatten(-1, (-1, args.group_size))
        return weight.amin(-1), weight.amax(-1)
    if args.strategy == "channel":
        return weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    return weight.min().reshape(1), weight.max().reshape(1)


def scheme_of(name: str, *, group_size: int = 32) -> QuantizationScheme:
    scheme = preset_name_to_scheme(name, ["Linear"])
    if scheme.weights and scheme.weights.group_size == 128:
        scheme.weights.group_size = group_size
    return scheme


def quantized(
    model: nn.Module,
    name: str,
    *,
    group_size: int = 32,
    include: str = "*",
    dtype: torch.dtype = torch.float32,
    masked: bool = False,
    with_head: bool = False,
) -> nn.Module:
    """The model with fakes of one preset on every chosen layer; scales exact in `dtype`."""
    scheme = scheme_of(name, group_size=group_size)
    for layer in choose_layers(model, include=include, with_head=with_head).values():
        weight = layer.weight
        if masked:
            mask = FakeMask(weight)
            attach_transform(layer, mask)
            weight = layer.weight
        attach_transform(layer, FakeQuantizer(scheme.weights, weight, dtype))
        if scheme.input_activations:
            attach_input_quantizer(layer, FakeInput(scheme.input_activations))
    return model
