"""The grid of values a number format can hold, and where its scales apply.

Legend: O output rows, I input columns, G groups of columns.
"""

from dataclasses import dataclass

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor

FP8_MAX, FP4_MAX = 448.0, 6.0
MX_OFFSET = {"fp4": 2, "fp8": 8}
"""floor(log2(largest value)): where a power-of-two scale puts a group's maximum."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Codes between `q_min` and `q_max`: integers, FP8 (E4M3) or FP4 (E2M1) values.

    `scale_format` is what the runtime stores: `float32`, `bfloat16`, `float16`, `e4m3` (times a
    global scale, NVFP4) or `e8m0` (powers of two, MXFP4).
    """

    kind: str
    q_min: float
    q_max: float
    scale_format: str = "float32"

    @property
    def half_range(self) -> float:
        """Steps between zero and the largest magnitude: 7.5 for int4, 448 for FP8."""
        return (self.q_max - self.q_min) / 2

    def scale_of(self, largest: Tensor) -> Tensor:
        """The step, fp32, that puts magnitude `largest` at the end of the range; never 0.

        Powers of two (MXFP4) follow the OCP MX specification: the largest value may saturate.
        Magnitudes too small for a normal step count as zeros.
        """
        largest = largest.float()
        if self.scale_format == "e8m0":
            mantissa, exponent = torch.frexp(largest)
            # from 1.75 * 2^e on, the largest value would round into the next binade
            power = exponent - 1 + (mantissa >= 0.875).to(exponent.dtype) - MX_OFFSET[self.kind]
            return torch.exp2(power.float().clamp(-126, 127))
        scale = largest / self.half_range
        floor = torch.finfo(torch.float32)
        return torch.where(scale < floor.tiny, floor.eps, scale)

    def round_(self, codes: Tensor) -> Tensor:
        """Nearest code in place, half to even; `codes` must lie in the range already."""
        if self.kind == "int":
            return codes.round_()
        if self.kind == "fp8":
            return codes.copy_(codes.to(torch.float8_e4m3fn))
        magnitude = codes.abs()
        step = torch.where(magnitude < 2.0, 0.5, torch.where(magnitude < 4.0, 1.0, 2.0))
        return codes.div_(step).round_().mul_(step)

    def rounded(self, codes: Tensor, *, out: Tensor) -> Tensor:
        """`round_` into other memory."""
        if self.kind == "int":
            return torch.round(codes, out=out)
        return self.round_(out.copy_(codes))

    def stored_scale(self, scale: Tensor, global_scale: Tensor | None = None) -> Tensor:
        """The nearest number that the file can hold, in fp32, and never 0."""
        if self.scale_format == "e4m3":
            assert global_scale is not None
            # 2^-9 is the smallest E4M3 number: below it a group would vanish
            stored = (scale * global_scale).clamp(2.0**-9, FP8_MAX)
            return stored.to(torch.float8_e4m3fn).float()
        if self.scale_format == "e8m0":
            # log2 may land just below a power of two: round, do not floor
            return torch.exp2(torch.log2(scale).round().clamp(-126, 127))
        dtype = getattr(torch, self.scale_format)
        if dtype == torch.float32:
            return scale
        return scale.clamp(torch.finfo(dtype).tiny, torch.finfo(dtype).max).to(dtype).float()

    def round_scale(self, scale: Tensor, global_scale: Tensor | None = None) -> Tensor:
        """The step that the runtime computes with: the stored scale, over the global one if any."""
        stored = self.stored_scale(scale, global_scale)
        return stored if global_scale is None else stored / global_scale


def grid_of(args: QuantizationArgs, *, scale_dtype: torch.dtype = torch.float32) -> Grid:
    """The grid of one `QuantizationArgs`; `scale_dtype` counts where the format leaves it open.

    >>> from compress.quantize.schemes import resolve_scheme
    >>> grid_of(resolve_scheme("W4A16").weights).q_max
    7.0
    """
    stored = {torch.float8_e4m3fn: "e4m3", torch.uint8: "e8m0"}.get(args.scale_dtype)
    scale_format = stored or str(scale_dtype).removeprefix("torch.")
    if args.type == "int":
        half = 2.0 ** (args.num_bits - 1)
        return Grid(kind="int", q_min=-half, q_max=half - 1, scale_format=scale_format)
    limit = FP8_MAX if args.num_bits == 8 else FP4_MAX
    kind = f"fp{args.num_bits}"
    return Grid(kind=kind, q_min=-limit, q_max=limit, scale_format=scale_format)


def scale_shape(args: QuantizationArgs, weight_OI: Tensor) -> tuple[int, ...]:
    """The shape in which compressed-tensors stores this weight's scale."""
    rows, columns = weight_OI.shape
    if args.strategy == "tensor":
        return (1,)
    if args.strategy == "channel":
        return (rows, 1)
    if args.strategy == "block":
        return (rows // args.block_structure[0], columns // args.block_structure[1])
    return (rows, columns // args.group_size)


def split(args: QuantizationArgs, values: Tensor) -> Tensor:
    """A view in which scales broadcast: groups and blocks get dimensions of their own."""
    shape = values.shape
    if args.strategy in ("group", "tensor_group"):
        return values.reshape(*shape[:-1], -1, args.group_size)
    if args.strategy == "block":
        height, width = args.block_structure
        return values.reshape(shape[0] // height, height, shape[1] // width, width)
    return values


def merge(args: QuantizationArgs, values: Tensor) -> Tensor:
    """Undo `split`."""
    if args.strategy in ("group", "tensor_group"):
        return values.flatten(-2)
    if args.strategy == "block":
        return values.flatten(2).flatten(0, 1)
    return values


def split_scale(args: QuantizationArgs, scale: Tensor) -> Tensor:
    """A stored scale as it broadcasts over `split(values)`."""
    if args.strategy in ("group", "tensor_group"):
        return scale.unsqueeze(-1)
    if args.strategy == "block":
        return scale[:, None, :, None]
    return scale


def largest_magnitude(args: QuantizationArgs, weight_OI: Tensor) -> Tensor:
    """Max |w| over the values that share a scale, in the stored scale's shape and fp32."""
    parts = split(args, weight_OI)
    if args.strategy == "tensor":
        return torch.maximum(parts.amax(), -parts.amin()).float().reshape(1)
    over = (1, 3) if args.strategy == "block" else (-1,)
    largest = torch.maximum(parts.amax(over), -parts.amin(over)).float()
    return largest.reshape(scale_shape(args, weight_OI))
