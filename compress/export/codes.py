"""Codes of quantised weights, decoded and recomputed without compressed-tensors' own code.

An independent second reading of the format: what the writer got wrong would show here.

Legend: R rows, C columns of a weight, W packed words; codes are plain numbers in fp32
(integers, FP8 or FP4 values).
"""

from collections.abc import Mapping

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP8_MAX = 448.0


def stored_codes(parts: Mapping[str, Tensor], args: QuantizationArgs) -> Tensor:
    """The codes (R, C) that one layer's file tensors hold."""
    if "weight" in parts:
        return parts["weight"].float()
    packed = parts["weight_packed"]
    if packed.dtype == torch.uint8:
        return unpack_fp4(packed)
    columns = int(parts["weight_shape"][-1])
    return unpack_int(packed, bits=args.num_bits, columns=columns)


def unpack_int(packed_RW: Tensor, *, bits: int, columns: int) -> Tensor:
    """Offset-binary integers out of a little-endian stream of int32 words, row by row.

    >>> unpack_int(torch.tensor([[0x18]], dtype=torch.int32), bits=4, columns=2)
    tensor([[ 0., -7.]])
    """
    words = packed_RW.to(torch.int64) & 0xFFFFFFFF
    positions = torch.arange(32, device=words.device)
    stream = ((words[..., None] >> positions) & 1).flatten(-2)[..., : columns * bits]
    weights = 2 ** torch.arange(bits, device=words.device)
    unsigned: Tensor = (stream.unflatten(-1, (columns, bits)) * weights).sum(-1)
    signed: Tensor = unsigned - 2 ** (bits - 1)
    return signed.float()


def unpack_fp4(packed_RW: Tensor) -> Tensor:
    """Two FP4 (E2M1) values a byte, the low nibble first.

    >>> unpack_fp4(torch.tensor([[0x92]], dtype=torch.uint8))
    tensor([[ 1.0000, -0.5000]])
    """
    nibbles = torch.stack((packed_RW & 15, packed_RW >> 4), dim=-1).flatten(-2).long()
    table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=packed_RW.device)
    return table[nibbles]


def expected_codes(
    weight_RC: Tensor, parts: Mapping[str, Tensor], args: QuantizationArgs
) -> Tensor:
    """round(weight / scale) in fp32, clamped to the type's range."""
    scaled = weight_RC.float() / step_size(parts, args, tuple(weight_RC.shape))
    if args.type == "int":
        bound = 2 ** (args.num_bits - 1)
        return scaled.round().clamp(-bound, bound - 1)
    if args.num_bits == 8:
        return scaled.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float()
    return round_to_fp4(scaled)


def round_to_fp4(values: Tensor) -> Tensor:
    """The nearest E2M1 value; a tie goes to the even code, beyond 6 to 6.

    >>> round_to_fp4(torch.tensor([0.25, 0.75, -5.0, 100.0]))
    tensor([ 0.,  1., -4.,  6.])
    """
    grid = torch.tensor(E2M1, device=values.device)
    middles = (grid[1:] + grid[:-1]) / 2
    index = torch.bucketize(values.abs(), middles)  # a tie falls to the lower code
    tie = values.abs() == middles[index.clamp(max=len(middles) - 1)]
    index = index + (tie & (index % 2 == 1) & (index < len(middles))).long()
    return torch.copysign(grid[index], values) + 0.0


def step_size(
    parts: Mapping[str, Tensor], args: QuantizationArgs, shape: tuple[int, ...]
) -> Tensor:
    """The size of one code step for every weight (R, C), in fp32."""
    scale = parts["weight_scale"]
    if scale.dtype == torch.uint8:  # microscaling: a biased power of two
        scale = torch.exp2(scale.float() - 127.0)
    scale = scale.float()
    if "weight_global_scale" in parts:
        scale = scale / parts["weight_global_scale"].float()
    return expand(scale, args, shape)


def expand(scale: Tensor, args: QuantizationArgs, shape: tuple[int, ...]) -> Tensor:
    """Repeat per-tensor, channel, group or block scales over the weight's shape."""
    rows, columns = shape
    if args.strategy in ("group", "tensor_group"):
        return scale.repeat_interleave(int(args.group_size or columns), dim=-1)[:, :columns]
    if args.strategy == "block":
        height, width = args.block_structure or (rows, columns)
        tall = scale.repeat_interleave(height, dim=0)[:rows]
        return tall.repeat_interleave(width, dim=1)[:, :columns]
    return scale.reshape(-1, 1).expand(rows, columns) if scale.numel() > 1 else scale.expand(shape)
