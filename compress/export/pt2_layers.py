"""Quantised layers in plain PyTorch operators: integer codes and scales, the trained product.

They take the place of the student's own layers in a copy that is exported. The codes are those of a
compressed-tensors checkpoint, so every target holds the same ones.

Legend: O outputs, I inputs of a layer, G groups, W words that codes are packed into.
"""

from collections.abc import Mapping
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor, nn
from torch.nn import functional

from compress.export.checkpoint import compressed_layer
from compress.export.codes import expand, stored_codes
from compress.export.plan import ExportPlan
from compress.export.schemes import groups_of
from compress.quantize.grid import grid_of

WORD = 32
"""Bits of a word that narrow codes are packed into."""


class Codes(nn.Module):
    """Integer codes and their scales, as buffers; no floating weight is kept.

    Args:
        parts: `weight` (a byte a code) or `weight_packed`, `weight_scale`, `input_scale` if static.
        args: of the codes.
        shape: rows and columns of the weight.
    """

    def __init__(
        self, parts: Mapping[str, Tensor], args: QuantizationArgs, shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.args, self.shape = args, shape
        for name, value in parts.items():
            self.register_buffer(name, value)

    def codes(self) -> Tensor:
        """The codes (O, I) as numbers."""
        held: dict[str, Any] = dict(self.named_buffers())
        if "weight" in held:
            return held["weight"]  # type: ignore[no-any-return]
        return unpacked(held["weight_packed"], bits=self.args.num_bits)[:, : self.shape[-1]]


class CodedLinear(Codes):
    """A linear layer that multiplies by `codes x scale`, its input rounded as in training."""

    def __init__(
        self, parts: Mapping[str, Tensor], args: QuantizationArgs, shape: tuple[int, ...],
        *, inputs: QuantizationArgs | None, bias: Tensor | None,
    ) -> None:  # fmt: skip
        """`inputs` is None where inputs stay as they are."""
        super().__init__(parts, args, shape)
        self.inputs = inputs
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        """The product, in the dtype of `values`."""
        if self.inputs is not None:
            values = rounded(values, self.inputs, dict(self.named_buffers()).get("input_scale"))
        scale: Any = self.weight_scale
        weight_OI = self.codes().float() * expand(scale.float(), self.args, self.shape)
        bias: Any = self.bias
        product: Tensor = functional.linear(values, weight_OI.to(values.dtype), bias)
        return product


class CodedEmbedding(Codes):
    """A table that is looked up as codes and scaled after it."""

    def __init__(
        self, parts: Mapping[str, Tensor], args: QuantizationArgs, shape: tuple[int, ...],
        *, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        """`dtype` is that of what comes out."""
        super().__init__(parts, args, shape)
        self.dtype = dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """The rows of these tokens."""
        scale: Any = self.weight_scale
        values: Tensor = functional.embedding(tokens, self.codes()).float()
        if scale.numel() == 1:
            values = values * scale.float()
        else:  # one or G a row
            scales = functional.embedding(tokens, scale.float()).unsqueeze(-1)
            values = (values.unflatten(-1, (scale.shape[-1], -1)) * scales).flatten(-2)
        return values.to(self.dtype)


def unpacked(words_OW: Tensor, *, bits: int) -> Tensor:
    """Signed codes out of little-endian int32 words; `bits` divides 32.

    >>> unpacked(torch.tensor([[0x18]], dtype=torch.int32), bits=4)[:, :2]
    tensor([[ 0, -7]], dtype=torch.int32)
    """
    places = torch.arange(0, WORD, bits, dtype=torch.int32, device=words_OW.device)
    offset: Tensor = (words_OW.unsqueeze(-1) >> places) & (2**bits - 1)
    signed: Tensor = offset.flatten(-2) - 2 ** (bits - 1)
    return signed


def rounded(values: Tensor, args: QuantizationArgs, scale: Tensor | None) -> Tensor:
    """`scale x round(clamp(values / scale))` in fp32, half to even; in the dtype of `values`.

    Args:
        values: any shape.
        args: integers, one scale for all (given) or for each row of the last axis.
        scale: None finds each row's, max |v| / half_range.

    >>> int8 = QuantizationArgs(num_bits=8, strategy="tensor", dynamic=False)
    >>> rounded(torch.tensor([0.26, -9.0]), int8, torch.tensor([0.5])).tolist()
    [0.5, -9.0]
    """
    grid, exact = grid_of(args), values.float()
    if scale is None:
        scale = grid.scale_of(
            torch.maximum(exact.amax(-1, keepdim=True), -exact.amin(-1, keepdim=True))
        )
    codes = (exact / scale.float()).clamp(grid.q_min, grid.q_max).round()
    return (codes * scale.float()).to(values.dtype)


@torch.no_grad()
def put_codes(copied: nn.Module, student: nn.Module, plan: ExportPlan, dtype: torch.dtype) -> None:
    """Replace every quantised layer of `copied`, a copy of `student`, in place."""
    layers: dict[str, Any] = dict(student.named_modules())
    for group in groups_of(plan):
        for planned in group.layers:
            layer, args = layers[planned.name], planned.weights
            assert args is not None
            parts = held_parts(compressed_layer(layer, planned, group, dtype=dtype), args)
            made: nn.Module
            if planned.kind == "Embedding":
                made = CodedEmbedding(parts, args, planned.shape, dtype=dtype)
            else:
                bias = None if layer.bias is None else layer.bias.detach().to("cpu", dtype)
                made = CodedLinear(parts, args, planned.shape, inputs=planned.inputs, bias=bias)
            copied.set_submodule(planned.name, made)


def held_parts(parts: Mapping[str, Tensor], args: QuantizationArgs) -> dict[str, Tensor]:
    """A compressed layer's tensors as a program holds them: packed where codes fill a word."""
    kept = {k: v for k, v in parts.items() if k not in ("weight_shape", "weight_packed", "weight")}
    if "weight_packed" in parts and args.num_bits < 8 and WORD % args.num_bits == 0:
        return {**kept, "weight_packed": parts["weight_packed"]}
    return {**kept, "weight": stored_codes(parts, args).to(torch.int8)}
