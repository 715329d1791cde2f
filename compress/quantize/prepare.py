"""Attach quantisers to a model: which layers, which scheme, and what the runtime fuses tied."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationScheme
from torch import Tensor, nn

from compress.errors import UnsupportedScheme
from compress.quantize.fusion import check_fused, fusions, tie_fused
from compress.quantize.inputs import QuantizeInput
from compress.quantize.kv_cache import attach_kv_quantizers
from compress.quantize.overrides import refuse_idle, schemes_by_name
from compress.quantize.schemes import check_layers, resolve_scheme
from compress.quantize.transforms import QuantizeWeight
from compress.targets import choose_layers, output_head_name
from compress.transforms import Stage, attach_input_quantizer, attach_transform, weight_before


def prepare(
    model: nn.Module,
    *,
    scheme: str | QuantizationScheme | None = "W8A8",
    weight_bits: int | None = None,
    activation_bits: int = 16,
    group_size: int | None = None,
    activations: str | None = None,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] | None = None,
    overrides: Mapping[str, str | None] | None = None,
    embeddings: str | None = None,
    kv_cache: str | None = None,
    init: str = "rtn",
    scales: str = "learned",
    scale_learning_rate: float = 1.0,
    scale_dtype: torch.dtype | None = None,
    observer: str = "minmax",
    observer_percentile: float = 0.9999,
    backward: str = "clipped",
) -> dict[str, nn.Module]:
    """Attach weight and input quantisers to the chosen layers; returns them by name.

    Args:
        model: changed in place; its output head is left out.
        scheme: a preset's name or a scheme; None takes the bits.
        weight_bits: see `resolve_scheme`.
        activation_bits: see `resolve_scheme`.
        group_size: see `resolve_scheme`.
        activations: see `resolve_scheme`.
        include: name patterns of linear layers.
        exclude: name patterns taken out again.
        overrides: name pattern -> preset (`"W4A16:32"` names the group size too), None leaves the
            layer dense; the last pattern that fits counts. `activations` holds for these presets
            too, except for inputs in blocks (NVFP4, MXFP4, FP8_BLOCK), which are dynamic alone.
        embeddings: preset of the input embeddings' weights (`"W8A16:32"`); None keeps them dense.
        kv_cache: `fp8` rounds keys and values too; None does not.
        init: `rtn`, `mse` or `percentile`; what needs data comes with `post_training.start`.
        scales: `learned`, `tracked` or `fixed`.
        scale_learning_rate: multiple of the run's learning rate for scales.
        scale_dtype: what scales are stored in; None chooses as the runtime loads them.
        observer: of static inputs: `minmax`, `percentile` or `mse`.
        observer_percentile: share of input magnitudes inside the range, for `percentile`.
        backward: `clipped` gives saturated values no gradient, `straight_through` passes it on.

    Raises:
        UnsupportedScheme: a layer does not fit its scheme (all are listed), fused layers would
            get different schemes, or tied embeddings were to be quantised.
        BadInput: a pattern fits no layer, or an override's preset none of the chosen ones; a
            weight holds NaN or infinities.
        UnsupportedModel: `kv_cache` where nothing writes to a cache.
    """
    layers = choose_layers(model, include=include, exclude=exclude)
    default = scheme
    if not isinstance(default, QuantizationScheme):
        default = resolve_scheme(
            default, group_size=group_size, activations=activations,
            weight_bits=weight_bits, activation_bits=activation_bits,
        )  # fmt: skip
    overrides = overrides or {}
    refuse_idle(overrides, layers, model, include=include, exclude=exclude)
    schemes = schemes_by_name(layers, default, overrides, activations=activations)
    if embeddings is not None:
        tables = _embeddings(model)
        layers, schemes = layers | tables, schemes | _table_schemes(tables, embeddings)
    layers = {name: layers[name] for name in schemes}
    check_layers(layers, schemes)
    check_fused(fusions(model, layers), schemes, scales=scales)
    learned = "learned" if scales == "learned" else "fixed"
    shared: dict[str, Any] = {
        "learning_rate_scale": scale_learning_rate,
        "pass_saturated": backward == "straight_through",
    }
    observed: dict[str, Any] = {
        "scales": learned,
        "observer": observer,
        "percentile": observer_percentile,
    }
    for name, layer in layers.items():
        before: Tensor = weight_before(layer, Stage.QUANTIZE)
        weight = QuantizeWeight(
            before, args=schemes[name].weights, scales=scales, init=init, scale_dtype=scale_dtype,
            name=name, **shared,
        )  # fmt: skip
        attach_transform(layer, weight)
        if (args := schemes[name].input_activations) is not None:
            inputs = QuantizeInput(args=args, name=name, device=before.device, **observed, **shared)
            attach_input_quantizer(layer, inputs)
    if kv_cache is not None:
        attach_kv_quantizers(model, **observed, **shared)
    tie_fused(model, layers)
    return layers


def _embeddings(model: nn.Module) -> dict[str, nn.Module]:
    config = getattr(model, "config", None)
    # an encoder's configuration may say so too, though it has no such head
    if output_head_name(model) is not None and getattr(config, "tie_word_embeddings", False):
        raise UnsupportedScheme(
            "embeddings: the output head shares the embedding's weight (tied), and no runtime "
            "loads a quantised one for both. Untie them (tie_word_embeddings=false), or leave "
            "callbacks.qat.embeddings null"
        )
    return choose_layers(model, kinds=(nn.Embedding,))


def _table_schemes(tables: Mapping[str, nn.Module], preset: str) -> dict[str, QuantizationScheme]:
    scheme = resolve_scheme(preset)
    if scheme.input_activations is not None:
        raise UnsupportedScheme(f"embeddings={preset!r}: token ids are not quantised; use W8A16:32")
    if scheme.weights.num_bits != 8 or scheme.weights.type != "int":
        raise UnsupportedScheme(
            f"embeddings={preset!r}: no runtime loads a packed table of fewer bits; use W8A16:32, "
            "or W8A16:-1 for one scale a token"
        )
    return dict.fromkeys(tables, scheme)
