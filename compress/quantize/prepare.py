"""Attach quantisers to a model, calibrate them, and tie what the runtime fuses.

Legend: one "fusion" is the set of layers that vLLM loads as one matrix: q/k/v, or gate/up.
"""

from collections.abc import Iterable, Mapping

import torch
from compressed_tensors.quantization import QuantizationScheme
from torch import Tensor, nn

from compress.errors import BadInput, UnsupportedScheme, did_you_mean
from compress.quantize.observers import INITS
from compress.quantize.schemes import check_layers, resolve_scheme
from compress.quantize.transforms import SCALE_MODES, QuantizeInput, QuantizeWeight
from compress.targets import choose_layers, matches
from compress.transforms import (
    INPUT_QUANTIZER,
    Stage,
    attach_input_quantizer,
    attach_transform,
    transformed_layers,
    transforms_of,
    weight_before,
)

FUSIONS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


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
    init: str = "rtn",
    scales: str = "learned",
    scale_learning_rate: float = 1.0,
    scale_dtype: torch.dtype | None = None,
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
            layer dense; the last pattern that fits counts.
        init: `rtn`, `mse` or `percentile`.
        scales: `learned`, `tracked` or `fixed`.
        scale_learning_rate: multiple of the run's learning rate for scales.
        scale_dtype: what scales are stored in; None chooses as the runtime loads them.

    Raises:
        UnsupportedScheme: a layer does not fit its scheme (all are listed), or fused layers would
            get different schemes.
        BadInput: a pattern fits no layer; a weight holds NaN or infinities.
    """
    layers = choose_layers(model, include=include, exclude=exclude)
    default = scheme
    if not isinstance(default, QuantizationScheme):
        default = resolve_scheme(
            default, group_size=group_size, activations=activations,
            weight_bits=weight_bits, activation_bits=activation_bits,
        )  # fmt: skip
    schemes = _plan(list(layers), default, overrides or {}, model)
    layers = {name: layers[name] for name in schemes}
    check_layers(layers, schemes)
    _check_fused(fusions(model, layers), schemes)
    for name, layer in layers.items():
        _attach(
            layer, schemes[name], name=name, init=init, scales=scales,
            learning_rate_scale=scale_learning_rate, scale_dtype=scale_dtype,
        )  # fmt: skip
    _tie_fused(model, layers)
    return layers


def initialize_weights(model: nn.Module, *, init: str = "rtn", percentile: float = 0.999) -> None:
    """Scales of every weight quantiser anew from the present (masked) weights."""
    layers = {n: m for n, m in transformed_layers(model) if weight_quantizer(m) is not None}
    for layer in layers.values():
        quantizer = weight_quantizer(layer)
        assert quantizer is not None
        before = weight_before(layer, Stage.QUANTIZE).detach()
        quantizer.initialize(before, init=init, percentile=percentile)
    _tie_fused(model, layers)


def _tie_fused(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    for names in fusions(model, layers):
        tie([layers[name] for name in names])


def fusions(model: nn.Module, names: Iterable[str]) -> list[list[str]]:
    """The sets of two or more of `names` that the runtime loads as one matrix."""
    known, found = set(names), []
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in names):
        for group in FUSIONS:
            siblings = [f"{parent}.{last}".lstrip(".") for last in group]
            present = [name for name in siblings if name in known]
            if len(present) > 1:
                found.append(present)
    return found


def weight_quantizer(layer: nn.Module) -> QuantizeWeight | None:
    """The layer's weight quantiser, if it has one."""
    return next((t for t in transforms_of(layer) if isinstance(t, QuantizeWeight)), None)


def input_quantizer(layer: nn.Module) -> QuantizeInput | None:
    """The layer's input quantiser, if it has one."""
    found = dict(layer.named_children()).get(INPUT_QUANTIZER)
    return found if isinstance(found, QuantizeInput) else None


def tie(layers: list[nn.Module]) -> None:
    """Give fused layers one scale where the runtime keeps one: NVFP4's global, per-tensor ones."""
    weights = [w for layer in layers if (w := weight_quantizer(layer)) is not None]
    if weights and weights[0].global_scale is not None:
        smallest = torch.stack(
            [w.global_scale for w in weights if w.global_scale is not None]
        ).amin(0)
        for weight in weights:
            assert weight.global_scale is not None
            weight.global_scale.copy_(smallest)
    if weights and weights[0].args.strategy == "tensor":
        largest = torch.stack([w.base_scale for w in weights]).amax(0)
        for weight in weights:
            weight.set_scale(largest)
            weight.log_step = weights[0].log_step  # one parameter: learned together
    inputs = [q for layer in layers if (q := input_quantizer(layer)) is not None]
    for other in inputs[1:]:
        other.log_step = inputs[0].log_step


def mark_frozen(model: nn.Module) -> None:
    """After a restore: the scales in the checkpoint were frozen already."""
    for part in model.modules():
        if isinstance(part, QuantizeWeight | QuantizeInput):
            part.frozen = True


def check_settings(*, init: str, scales: str, scale_dtype: str | None) -> None:
    """Refuse unknown words before anything is built.

    Raises:
        BadInput: names the setting, what is known, and the nearest word.
    """
    known = {
        "init": (init, INITS),
        "scales": (scales, SCALE_MODES),
        "scale_dtype": (scale_dtype or "float32", ("float32", "bfloat16", "float16")),
    }
    for setting, (value, words) in known.items():
        if value not in words:
            hint = did_you_mean(value, words)
            raise BadInput(f"{setting}={value!r} is unknown.{hint} Use one of {', '.join(words)}")


def set_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch every quantiser of a model on or off (a dense forward)."""
    for part in model.modules():
        if isinstance(part, QuantizeWeight | QuantizeInput):
            part.enabled = enabled


def freeze_scales(model: nn.Module) -> None:
    """Keep every scale at its present value from now on."""
    for part in model.modules():
        if isinstance(part, QuantizeWeight | QuantizeInput):
            part.freeze()


def _plan(
    names: list[str],
    default: QuantizationScheme,
    overrides: Mapping[str, str | None],
    model: nn.Module,
) -> dict[str, QuantizationScheme]:
    if overrides:
        choose_layers(model, include=list(overrides))  # refuses a pattern that fits nothing
    plan = {}
    for name in names:
        chosen: QuantizationScheme | None = default
        for pattern, preset in overrides.items():
            if matches(name, [pattern]):
                chosen = None if preset is None else _override(preset)
        if chosen is not None:
            plan[name] = chosen
    return plan


def _override(preset: str) -> QuantizationScheme:
    name, _, group = preset.partition(":")
    return resolve_scheme(name, group_size=int(group) if group else None)


def _check_fused(fused: list[list[str]], schemes: Mapping[str, QuantizationScheme]) -> None:
    mixed = [n for n in fused if any(schemes[m] != schemes[n[0]] for m in n[1:])]
    if mixed:
        listed = "\n".join(f"  {', '.join(names)}" for names in mixed)
        raise UnsupportedScheme(
            f"the runtime loads these layers as one matrix, but their schemes differ:\n{listed}\n"
            "Give q/k/v one scheme, and gate/up one"
        )


def _attach(
    layer: nn.Module, scheme: QuantizationScheme, *, name: str, init: str, scales: str,
    learning_rate_scale: float, scale_dtype: torch.dtype | None,
) -> None:  # fmt: skip
    before: Tensor = weight_before(layer, Stage.QUANTIZE)
    attach_transform(
        layer,
        QuantizeWeight(
            before, args=scheme.weights, scales=scales, init=init, scale_dtype=scale_dtype,
            learning_rate_scale=learning_rate_scale, name=name,
        ),
    )  # fmt: skip
    if scheme.input_activations is not None:
        attach_input_quantizer(
            layer,
            QuantizeInput(
                args=scheme.input_activations, scales="fixed" if scales == "fixed" else "learned",
                learning_rate_scale=learning_rate_scale, name=name, device=before.device,
            ),
        )  # fmt: skip
