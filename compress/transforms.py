"""Weight transforms: from the trained weight to the used weight, in one fixed order.

A transform is a parametrisation (`torch.nn.utils.parametrize`): the trained weight stays in the
state dict as `parametrizations.weight.original`. Whatever the recipe's order, masks come first,
then adapters, then quantisers: symmetric quantisation keeps a zero a zero.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Stage(IntEnum):
    """Where in the chain a transform stands; smaller comes first."""

    ADAPT = 0  # low-rank additions: part of the dense weight
    MASK = 1
    QUANTIZE = 2


@dataclass(frozen=True, kw_only=True)
class TransformRecord:
    """Plain data about one transform, for exporters: no live module behind it.

    `args` is a `compressed_tensors.quantization.QuantizationArgs` for quantisers. `tensors` holds
    what the runtime loads (`scale`, `zero_point`, `global_scale`) or the boolean `mask`.
    """

    kind: Literal["mask", "adapter", "quantize"]
    args: Any = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class WeightTransform(nn.Module):
    """Maps a weight to the weight that is used; shape and dtype stay the same."""

    stage: Stage
    learning_rate_scale: float = 1.0
    """Its own parameters learn at this multiple of the run's learning rate, without decay."""

    runs: tuple[int, int] = (1, 1)
    """Rows and columns that belong together: whoever cuts the weight keeps or drops whole runs."""

    def forward(self, weight: Tensor) -> Tensor:
        """The used weight."""
        raise NotImplementedError

    def scheme(self) -> TransformRecord:
        """What an exporter must know."""
        raise NotImplementedError


class InputTransform(nn.Module):
    """Maps a layer's input to the input that is used; lives at `layer.input_quantizer`."""

    learning_rate_scale: float = 1.0

    def scheme(self) -> TransformRecord:
        """What an exporter must know."""
        raise NotImplementedError


INPUT_QUANTIZER = "input_quantizer"
KV_QUANTIZER = "kv_quantizer"


def attach_transform(layer: nn.Module, transform: WeightTransform, *, name: str = "weight") -> None:
    """Put `transform` into the chain of `layer.<name>` at the place its stage demands.

    Raises:
        ValueError: a transform of the same class is there already.
    """
    chain = transforms_of(layer, name=name)
    if any(type(other) is type(transform) for other in chain):
        raise ValueError(f"{type(transform).__name__} is attached to this layer already")
    parametrize.register_parametrization(layer, name, transform, unsafe=True)
    ordered = sorted([*chain, transform], key=lambda t: t.stage)
    modules: Any = layer.parametrizations[name]  # type: ignore[index, union-attr]
    for index, module in enumerate(ordered):
        modules[index] = module


def transforms_of(layer: nn.Module, *, name: str = "weight") -> list[WeightTransform]:
    """The chain of `layer.<name>`, in the order it is applied; empty where there is none."""
    if not parametrize.is_parametrized(layer, name):
        return []
    return list(layer.parametrizations[name])  # type: ignore[index, union-attr, arg-type]


def trained_weight(layer: nn.Module, *, name: str = "weight") -> Tensor:
    """The weight the optimizer sees, before any transform."""
    if transforms_of(layer, name=name):
        return layer.parametrizations[name].original  # type: ignore[index, union-attr, return-value, no-any-return]
    return getattr(layer, name)  # type: ignore[no-any-return]


def weight_before(layer: nn.Module, stage: Stage, *, name: str = "weight") -> Tensor:
    """The weight after all transforms of a stage below `stage` (e.g. masked, not yet quantised)."""
    weight = trained_weight(layer, name=name)
    for transform in transforms_of(layer, name=name):
        if transform.stage < stage:
            weight = transform(weight)
    return weight


def attach_input_quantizer(layer: nn.Module, quantizer: InputTransform) -> None:
    """Run `quantizer` on the layer's first input, each forward.

    Raises:
        ValueError: the layer has one already.
    """
    attach_child(layer, INPUT_QUANTIZER, quantizer)
    layer.register_forward_pre_hook(_quantize_input)


def attach_child(module: nn.Module, name: str, child: nn.Module) -> None:
    """Add a quantiser that is called by a hook.

    Raises:
        ValueError: there is one of this name already.
    """
    if hasattr(module, name):
        raise ValueError(f"{name}: one is attached to this module already")
    module.add_module(name, child)


def _quantize_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.get_submodule(INPUT_QUANTIZER)(args[0]), *args[1:])


def transformed_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every layer with a weight transform or an input quantizer."""
    for name, layer in model.named_modules():
        if transforms_of(layer) or INPUT_QUANTIZER in dict(layer.named_children()):
            yield name, layer


@torch.no_grad()
def plain_state_dict(model: nn.Module, *, transformed: bool = True) -> dict[str, Tensor]:
    """The state dict under the names of the model without transforms.

    Args:
        model: any module; left untouched.
        transformed: True, weights as used (masked, fake-quantised); False, as trained.
    """
    chained = {name: layer for name, layer in model.named_modules() if transforms_of(layer)}
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if f".{INPUT_QUANTIZER}." in key or f".{KV_QUANTIZER}." in key:
            continue
        owner, found, rest = key.partition(".parametrizations.")
        if not found:
            state[key] = value
        elif rest.endswith(".original"):
            tensor_name = rest.removesuffix(".original")
            layer = chained[owner]
            used = getattr(layer, tensor_name) if transformed else value
            state[f"{owner}.{tensor_name}"] = used.detach()  # type: ignore[union-attr]
    return state


def apply_mask(values: Tensor, mask: Tensor) -> Tensor:
    """`values * mask`, its gradient likewise; the mask is boolean and broadcasts.

    A CPU multiplies floats by booleans 3.6 times as slowly as by bytes in the same memory, and
    compiled code 14 times: there the product is an operator of its own, never fused.

    >>> apply_mask(torch.tensor([2.0, 3.0]), torch.tensor([True, False]))
    tensor([2., 0.])
    """
    if not torch.compiler.is_compiling():
        return values * mask.view(torch.int8)
    if values.device.type != "cpu":
        return values * mask
    product: Tensor = _apply_mask(values, mask.expand_as(values))
    return product


@torch.library.custom_op("compress::apply_mask", mutates_args=())
def _apply_mask(values: Tensor, mask: Tensor) -> Tensor:
    return values * mask.view(torch.int8)


@_apply_mask.register_fake
def _(values: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(values)


def _keep_mask(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _masked_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return _apply_mask(gradient, *ctx.saved_tensors), None


_apply_mask.register_autograd(_masked_gradient, setup_context=_keep_mask)
