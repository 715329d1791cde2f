"""Layers that take another scheme than the rest: name patterns and presets."""

from collections.abc import Iterable, Mapping

from compressed_tensors.quantization import QuantizationScheme
from torch import nn

from compress.errors import BadInput
from compress.quantize.schemes import GROUPED, resolve_scheme
from compress.targets import as_patterns, choose_layers, matches, output_head_name

Overrides = Mapping[str, str | None]
"""Name pattern -> preset, or None: stays dense; the last pattern that fits a name counts."""


def schemes_by_name(
    names: Iterable[str],
    default: QuantizationScheme,
    overrides: Overrides,
    *,
    activations: str | None = None,
) -> dict[str, QuantizationScheme]:
    """The scheme of every layer that is quantised.

    Args:
        names: of the chosen layers.
        default: of those that no pattern fits.
        overrides: of the others.
        activations: `dynamic` or `static`, for presets that quantise activations too; inputs in
            blocks (NVFP4, MXFP4, FP8_BLOCK) are dynamic alone, so these stay as they are.
    """
    schemes = {}
    for name in names:
        chosen: QuantizationScheme | None = default
        for pattern, preset in overrides.items():
            if matches(name, [pattern]):
                chosen = None if preset is None else _resolve(preset, activations)
        if chosen is not None:
            schemes[name] = chosen
    return schemes


def _resolve(preset: str, activations: str | None) -> QuantizationScheme:
    scheme = resolve_scheme(preset)
    inputs = scheme.input_activations
    if inputs is None or inputs.strategy in GROUPED:
        return scheme
    return resolve_scheme(preset, activations=activations)


def refuse_idle(
    overrides: Overrides,
    chosen: Iterable[str],
    model: nn.Module,
    *,
    include: str | Iterable[str],
    exclude: str | Iterable[str] | None,
) -> None:
    """Refuse presets that reach no chosen layer; None for such layers says what is so anyway.

    Raises:
        BadInput: lists every such pattern, and why its layers are not quantised.
    """
    if not overrides:
        return
    # refuses what fits no name at all
    named = list(choose_layers(model, include=list(overrides), with_head=True))
    reached = set(chosen)
    fitting = {p: [n for n in named if matches(n, [p])] for p in overrides}
    idle = [p for p, ns in fitting.items() if overrides[p] is not None and not reached & set(ns)]
    if idle:
        listed = "\n".join(
            f"  {pattern!r}: {overrides[pattern]}   {_counted(fitting[pattern])}: "
            + _why_dense(fitting[pattern][0], model, include=include, exclude=exclude)
            for pattern in idle
        )
        raise BadInput(
            f"{len(idle)} of {len(overrides)} overrides reach no layer that is quantised:\n{listed}"
            "\nChoose these layers by include and exclude, or leave the overrides out"
        )


def _counted(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _why_dense(
    name: str,
    model: nn.Module,
    *,
    include: str | Iterable[str],
    exclude: str | Iterable[str] | None,
) -> str:
    if name == output_head_name(model):
        return "the output head stays dense, as every runtime expects"
    unwanted = as_patterns(exclude)
    if matches(name, unwanted):
        return f"taken out by exclude={unwanted}"
    return f"not in include={as_patterns(include)}"
