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
    KV_QUANTIZER,
    TransformRecord,
    trained_weight,
    transformed_layers,
    transforms_of,
)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One layer's compression.

    `tensors` go to the file under their names: `weight_scale`, `weight_zero_point`,
    `weight_global_scale`, `input_scale`, `input_zero_point`, `input_global_scale`.
    `mask` is True where a weight lives; `scale_dtype` is what the training forward rounds its
    scales to.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: QuantizationArgs | None = None
    inputs: QuantizationArgs | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    pattern: str | None = None
    scale_dtype: torch.dtype | None = None

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
    def products(self) -> tuple[LayerPlan, ...]:
        """Quantised layers that multiply: all but embeddings."""
        return tuple(layer for layer in self.quantized if layer.kind != "Embedding")

    @property
    def tables(self) -> tuple[LayerPlan, ...]:
        """Quantised embeddings."""
        return tuple(layer for layer in self.quantized if layer.kind == "Embedding")

    @property
    def sparse(self) -> tuple[LayerPlan, ...]:
        """Layers with a mask."""
        return tuple(layer for layer in self.layers if layer.mask is not None)


def collect_plan(student: nn.Module, *, trained: bool = True) -> ExportPlan:
    """Read the records of every transform on `student`; the model is left untouched.

    Args:
        student: a Hugging Face model, transforms attached.
        trained: False before training: quantisers may wait for their first step or their
            calibration still, and count as they will be. True: a quantiser that is switched off
            leaves its layer dense.

    Raises:
        UnsupportedScheme: a record that no exporter knows.
    """
    linears = {
        name: tuple(trained_weight(layer).shape)
        for name, layer in student.named_modules()
        if isinstance(layer, nn.Linear)
    }
    config = config_of(student)
    return ExportPlan(
        layers=tuple(
            _layer_plan(name, layer, trained=trained) for name, layer in transformed_layers(student)
        ),
        linears=linears,
        head=output_head_name(student),
        tied_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        architecture=type(student).__name__,
        config=config,
        **_kv_plan(student, trained=trained),
    )


def _kv_plan(student: nn.Module, *, trained: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: module.get_submodule(KV_QUANTIZER)
        for name, module in student.named_modules()
        if KV_QUANTIZER in dict(module.named_children())
    }
    on = {n: q for n, q in found.items() if not trained or q.keys.enabled}
    if not on:
        return {}
    args = next(iter(on.values())).keys.args
    if not trained:  # its scales are calibrated later
        return {"kv_cache": args}
    tensors = {f"{n}.{key}": value for n, q in on.items() for key, value in q.tensors().items()}
    return {"kv_cache": args, "kv_tensors": tensors}


def _layer_plan(name: str, layer: nn.Module, *, trained: bool) -> LayerPlan:
    if trained:  # first of all: a scale that follows the weight is brought up to date by a forward
        _ = layer.weight
    records = [transform.scheme() for transform in transforms_of(layer)]
    _refuse_unknown(name, records)
    masks = [r for r in records if r.kind == "mask" and (trained or not _will_be_cut(r))]
    quantizer = _switched_on([r for r in records if r.kind == "quantize"], trained=trained)
    inputs = _switched_on(_input_records(layer, trained=trained), trained=trained)
    return LayerPlan(
        name=name,
        kind=_kind_of(layer),
        shape=tuple(trained_weight(layer).shape),
        weights=quantizer.args if quantizer else None,
        inputs=inputs.args if inputs else None,
        tensors={**_named("weight", quantizer), **_named("input", inputs)},
        mask=_joint_mask(masks),
        pattern=_pattern_of(masks),
        scale_dtype=quantizer.details.get("scale_dtype") if quantizer else None,
    )


def _will_be_cut(record: TransformRecord) -> bool:
    # structured masks end as smaller shapes, not as zeros
    return record.details.get("pattern") == "structured"


def _kind_of(layer: nn.Module) -> str:
    # torch's parametrisations give every layer a class of its own
    kinds = (nn.Linear, nn.Embedding, nn.Conv1d)
    return next((k.__name__ for k in kinds if isinstance(layer, k)), type(layer).__name__)


def _input_records(layer: nn.Module, *, trained: bool) -> list[TransformRecord]:
    quantizer: Any = dict(layer.named_children()).get(INPUT_QUANTIZER)
    if quantizer is None:
        return []
    if not trained:  # a static scale is calibrated later: only its arguments are known
        return [TransformRecord(kind="quantize", args=quantizer.args)]
    return [quantizer.scheme()]


def _switched_on(records: list[TransformRecord], *, trained: bool) -> TransformRecord | None:
    on = (r for r in records if not trained or r.details.get("enabled", True))
    return next(on, None)


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
