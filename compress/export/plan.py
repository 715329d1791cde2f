"""What is to be exported, as plain data: one `LayerPlan` for each layer that a transform touches.

Collected from the `scheme()` records of the transforms; exporters never see callbacks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor, nn

from compress.errors import UnsupportedScheme
from compress.models import config_of
from compress.targets import output_head_name
from compress.transforms import (
    INPUT_QUANTIZER,
    TransformRecord,
    transformed_layers,
    transforms_of,
)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One layer's compression.

    `tensors` go to the file under their names: `weight_scale`, `weight_zero_point`,
    `weight_global_scale`, `input_scale`, `input_zero_point`, `input_global_scale`.
    `mask` is True where a weight lives.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: QuantizationArgs | None = None
    inputs: QuantizationArgs | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    pattern: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether the layer is in a config group."""
        return self.weights is not None or self.inputs is not None

    @property
    def density(self) -> float:
        """Share of weights that live; 1.0 without a mask."""
        return 1.0 if self.mask is None else float(self.mask.float().mean())


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """All layers that are compressed, and what an exporter must know of the model around them.

    `linears` maps every linear layer of the model to its shape, compressed or not.
    """

    layers: tuple[LayerPlan, ...]
    linears: Mapping[str, tuple[int, ...]]
    head: str | None
    tied_embeddings: bool
    architecture: str
    config: Any
    kv_cache: QuantizationArgs | None = None
    kv_tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def layer(self, name: str) -> LayerPlan | None:
        """The plan of one layer; None where nothing touches it."""
        return self._by_name().get(name)

    def _by_name(self) -> dict[str, LayerPlan]:
        return {layer.name: layer for layer in self.layers}

    @property
    def quantized(self) -> tuple[LayerPlan, ...]:
        """Layers with a weight or input quantiser."""
        return tuple(layer for layer in self.layers if layer.quantized)

    @property
    def sparse(self) -> tuple[LayerPlan, ...]:
        """Layers with a mask."""
        return tuple(layer for layer in self.layers if layer.mask is not None)


def collect_plan(student: nn.Module) -> ExportPlan:
    """Read the records of every transform on `student`; the model is left untouched.

    Raises:
        UnsupportedScheme: a record that no exporter knows.
    """
    linears = {
        name: tuple(layer.weight.shape)
        for name, layer in student.named_modules()
        if isinstance(layer, nn.Linear)
    }
    config = config_of(student)
    return ExportPlan(
        layers=tuple(_layer_plan(name, layer) for name, layer in transformed_layers(student)),
        linears=linears,
        head=output_head_name(student),
        tied_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        architecture=type(student).__name__,
        config=config,
    )


def _layer_plan(name: str, layer: nn.Module) -> LayerPlan:
    records = [transform.scheme() for transform in transforms_of(layer)]
    _refuse_unknown(name, records)
    quantizer = next((r for r in records if r.kind == "quantize"), None)
    masks = [r for r in records if r.kind == "mask"]
    inputs = _input_record(layer)
    return LayerPlan(
        name=name,
        kind=_kind_of(layer),
        shape=tuple(layer.weight.shape),  # type: ignore[union-attr, arg-type]
        weights=quantizer.args if quantizer else None,
        inputs=inputs.args if inputs else None,
        tensors={**_named("weight", quantizer), **_named("input", inputs)},
        mask=_joint_mask(masks),
        pattern=_pattern_of(masks),
    )


def _kind_of(layer: nn.Module) -> str:
    # torch's parametrisations give every layer a class of its own
    kinds = (nn.Linear, nn.Embedding, nn.Conv1d)
    return next((k.__name__ for k in kinds if isinstance(layer, k)), type(layer).__name__)


def _input_record(layer: nn.Module) -> TransformRecord | None:
    quantizer = dict(layer.named_children()).get(INPUT_QUANTIZER)
    return quantizer.scheme() if quantizer is not None else None  # type: ignore[operator, no-any-return]


def _refuse_unknown(name: str, records: Iterable[TransformRecord]) -> None:
    unknown = [r.kind for r in records if r.kind not in ("mask", "adapter", "quantize")]
    if unknown:
        raise UnsupportedScheme(f"{name}: no exporter knows a transform of kind {unknown[0]!r}")


def _named(base: str, record: TransformRecord | None) -> dict[str, Tensor]:
    tensors = record.tensors if record else {}
    return {f"{base}_{key}": value.detach().clone() for key, value in tensors.items()}


@torch.no_grad()
def _joint_mask(records: list[TransformRecord]) -> Tensor | None:
    masks = [record.tensors["mask"].detach().bool() for record in records]
    if not masks:
        return None
    joint = masks[0].clone()
    for mask in masks[1:]:
        joint &= mask
    return joint


def _pattern_of(records: list[TransformRecord]) -> str | None:
    patterns = [str(record.details.get("pattern", "unstructured")) for record in records]
    return " and ".join(dict.fromkeys(patterns)) or None
