"""Which number format each weight and input takes, in compressed-tensors' words.

A preset (`"W4A16"`) or its parts become one `QuantizationScheme`; layers that cannot take it are
refused together, before any training.
"""

from collections.abc import Mapping
from typing import Any

from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStrategy,
)
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES, preset_name_to_scheme
from torch import nn

from compress.errors import UnsupportedScheme, did_you_mean

SCHEMES = (
    "W8A8", "W8A16", "W4A16", "W4A8", "W3A16", "W2A16",
    "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4", "NVFP4A16", "MXFP4", "MXFP4A16",
)  # fmt: skip
"""Presets that can be trained here and that reload from a compressed-tensors checkpoint."""

GROUPED = (QuantizationStrategy.GROUP, QuantizationStrategy.TENSOR_GROUP)


def resolve_scheme(
    scheme: str | None = "W8A8",
    *,
    group_size: int | None = None,
    activations: str | None = None,
    weight_bits: int | None = None,
    activation_bits: int = 16,
) -> QuantizationScheme:
    """The scheme that a preset name, or its parts, stand for.

    Args:
        scheme: a name of `SCHEMES`, in any case, with a group size after a colon if wanted
            (`"W4A16:32"`); None takes the parts below.
        group_size: columns that share a scale, for integer weights in groups; -1 is the whole row
            (per channel); None keeps the preset's (128).
        activations: `"dynamic"` (a scale per token, found as it runs) or `"static"` (one scale,
            calibrated before training); None keeps the preset's.
        weight_bits: 2, 3, 4 or 8 integer bits, where `scheme` is None.
        activation_bits: 8 or 16 (not quantised), where `scheme` is None.

    Raises:
        UnsupportedScheme: no such preset, or parts that no runtime loads.

    >>> resolve_scheme("W4A16", group_size=32).weights.group_size
    32
    >>> resolve_scheme(None, weight_bits=8, activation_bits=8).weights.strategy
    'channel'
    """
    scheme, group_size = _split_name(scheme, group_size)
    name = _name_of(scheme, weight_bits=weight_bits, activation_bits=activation_bits)
    resolved: QuantizationScheme = preset_name_to_scheme(name, targets=["Linear"])
    if group_size is not None:
        resolved.weights = _regroup(resolved.weights, group_size, name)
    if activations is not None:
        resolved.input_activations = _activations(resolved.input_activations, activations, name)
    return resolved


def _split_name(scheme: str | None, group_size: int | None) -> tuple[str | None, int | None]:
    name, colon, size = (scheme or "").partition(":")
    if not colon:
        return scheme, group_size
    if group_size is not None or not size.lstrip("-").isdigit():
        raise UnsupportedScheme(f"scheme={scheme!r}, group_size={group_size}: one group size")
    return name, int(size)


def _name_of(scheme: str | None, *, weight_bits: int | None, activation_bits: int) -> str:
    if scheme is None:
        if weight_bits is None:
            raise UnsupportedScheme("neither scheme nor weight_bits is given; try scheme=W8A8")
        scheme = f"W{weight_bits}A{activation_bits}"
    elif weight_bits is not None:
        raise UnsupportedScheme(f"scheme={scheme!r} and weight_bits={weight_bits}: give one")
    name = {"INT8": "W8A8"}.get(scheme.upper(), scheme.upper())
    if "ASYM" in name:
        raise UnsupportedScheme(
            f"scheme={scheme!r}: asymmetric checkpoints do not reload; use W4A16"
        )
    if name not in SCHEMES:
        known = "exists, but no runtime here serves it" if name in PRESET_SCHEMES else "is unknown"
        hint = did_you_mean(name, SCHEMES)
        raise UnsupportedScheme(f"scheme={scheme!r} {known}.{hint} Known: {', '.join(SCHEMES)}")
    return name


def _regroup(weights: QuantizationArgs, group_size: int, name: str) -> QuantizationArgs:
    if weights.type != "int" or weights.strategy not in ("group", "channel"):
        raise UnsupportedScheme(f"group_size={group_size}: the blocks of {name} have a fixed size")
    if name == "W8A8" and group_size != -1:
        raise UnsupportedScheme(
            f"group_size={group_size}: W8A8 kernels take one scale per channel; use W4A8 or W8A16"
        )
    if group_size != -1 and group_size < 1:
        raise UnsupportedScheme(f"group_size={group_size}: use 32, 64, 128, or -1 for a whole row")
    grouped = {"strategy": "channel"} if group_size == -1 else {"group_size": group_size}
    return _changed(weights, {"group_size": None, **grouped})


def _activations(args: QuantizationArgs | None, wanted: str, name: str) -> QuantizationArgs | None:
    if wanted not in ("dynamic", "static"):
        raise UnsupportedScheme(f"activations={wanted!r}: use 'dynamic' or 'static'")
    if args is None:
        raise UnsupportedScheme(f"activations={wanted!r}: {name} does not quantise activations")
    if args.strategy in GROUPED:
        if wanted == "static":
            raise UnsupportedScheme(f"activations='static': {name} has dynamic blocks alone")
        return args
    if wanted == "static":
        return _changed(args, {"strategy": "tensor", "dynamic": False})
    return _changed(args, {"strategy": "token", "dynamic": True, "observer": None})


def _changed(args: QuantizationArgs, changes: Mapping[str, Any]) -> QuantizationArgs:
    kept = {key: getattr(args, key) for key in args.model_fields_set}
    return QuantizationArgs(**{**kept, **changes})


def kv_cache_args() -> QuantizationArgs:
    """FP8 with one static scale each for keys and values, as vLLM's `kv_cache_dtype="fp8"`."""
    return QuantizationArgs(num_bits=8, type="float", strategy="tensor", symmetric=True)


def check_layers(
    layers: Mapping[str, nn.Module], schemes: Mapping[str, QuantizationScheme]
) -> None:
    """Refuse layers whose width the groups or blocks of their scheme do not divide.

    Raises:
        UnsupportedScheme: lists every such layer and the way out.
    """
    misfits = {n: text for n, m in layers.items() if (text := _misfit(m, schemes[n])) is not None}
    if not misfits:
        return
    width = max(len(name) for name in misfits)
    listed = "\n".join(f"  {name:<{width}}   {text}" for name, text in misfits.items())
    count = f"{len(misfits)} of {len(layers)} layers"
    endings = sorted({name.rpartition(".")[2] for name in misfits})
    raise UnsupportedScheme(
        f"the group or block size does not divide {count}:\n{listed}\n"
        "Use a group_size that divides them all, or exclude them: "
        f"callbacks.qat.exclude='{','.join('*' + ending for ending in endings)}'"
    )


def _misfit(layer: nn.Module, scheme: QuantizationScheme) -> str | None:
    rows, columns = layer.weight.shape  # type: ignore[misc, operator, union-attr]
    for args in (scheme.weights, scheme.input_activations):
        if args is not None and args.strategy in GROUPED and columns % args.group_size:
            return f"{columns} columns, group_size {args.group_size}"
        if args is not None and args.strategy == QuantizationStrategy.BLOCK:
            height, length = args.block_structure
            if rows % height or columns % length:
                return f"{rows} rows x {columns} columns, blocks of {height} x {length}"
    return None
