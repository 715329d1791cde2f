"""How much each layer suffers from each scheme: KL divergence from the dense model, alone.

Legend: N positions, V vocabulary.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import BadInput
from compress.quantize.budget import Unit, bits_of, stored_scale_dtype
from compress.quantize.calibration import calibration_batches, evaluating
from compress.quantize.fusion import fusions, quantizers, weight_quantizer
from compress.quantize.post_training import start
from compress.quantize.prepare import prepare
from compress.quantize.switches import set_enabled

BUDGET_SCHEMES = ("W2A16:32", "W3A16:32", "W4A16:32", "W8A16:32")


def measure_sensitivity(
    model: nn.Module,
    data: Any,
    *,
    schemes: Sequence[str] = BUDGET_SCHEMES,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] | None = None,
    init: str = "mse",
    samples: int = 16,
    seed: int = 0,
    scale_dtype: torch.dtype | None = None,
    export_dtype: torch.dtype = torch.float32,
) -> list[Unit]:
    """Quantises one unit at a time by each scheme and measures what it does to the outputs.

    A unit is a layer, or the layers that the runtime fuses (q/k/v, gate/up). Damage is the mean
    over positions of `KL(dense || quantised)` in nats.

    Args:
        model: dense; left as it is (each scheme gets a copy of its own, one after another).
        data: rows to measure on.
        schemes: presets, with a group size after a colon if wanted.
        include: name patterns of linear layers.
        exclude: name patterns taken out again.
        init: how the weights get their scales, see `start`.
        samples: rows.
        seed: of their draw.
        scale_dtype: see `prepare`.
        export_dtype: of the file whose bits are counted.

    Raises:
        UnsupportedScheme: a scheme does not fit a layer; all are listed.
        BadInput: there is no data.
    """
    damage: dict[tuple[str, ...], dict[str, float]] = {}
    bits: dict[tuple[str, ...], dict[str, float]] = {}
    shapes: dict[str, torch.Size] = {}
    batches = list(calibration_batches(data, samples=samples, seed=seed, rows_per_batch=4))
    if not batches:
        raise BadInput("sensitivity got no row to measure on: the data set is empty or samples=0")
    for scheme in schemes:
        copied = copy.deepcopy(model)
        layers = prepare(
            copied, scheme=scheme, include=include, exclude=exclude, scale_dtype=scale_dtype
        )
        start(copied, data, init=init, samples=samples, seed=seed)
        set_enabled(copied, False)
        shapes = {name: layer.weight.shape for name, layer in layers.items()}  # type: ignore[misc, union-attr]
        for names, nats in _one_at_a_time(copied, units_of(copied, layers), batches).items():
            damage.setdefault(names, {})[scheme] = nats
            bits.setdefault(names, {})[scheme] = _bits(layers[names[0]], scheme, export_dtype)
    return [
        Unit(
            names=names,
            weights=sum(shapes[n].numel() for n in names),
            damage=nats,
            bits=bits[names],
        )
        for names, nats in damage.items()
    ]


def _bits(layer: nn.Module, scheme: str, export_dtype: torch.dtype) -> float:
    quantizer = weight_quantizer(layer)
    assert quantizer is not None
    stored = stored_scale_dtype(quantizer.scale_dtype, export_dtype)
    columns: int = layer.weight.shape[-1]  # type: ignore[assignment, index, union-attr]
    return bits_of(scheme, columns=columns, scale_dtype=stored)


def units_of(model: nn.Module, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Fused sets, and every other layer by itself, in model order."""
    listed = list(names)
    member = {name: tuple(group) for group in fusions(model, listed) for name in group}
    return list(dict.fromkeys(member.get(name, (name,)) for name in listed))


def _one_at_a_time(
    model: nn.Module, units: Sequence[tuple[str, ...]], batches: Sequence[Mapping[str, Tensor]]
) -> dict[tuple[str, ...], float]:
    sums, positions = dict.fromkeys(units, 0.0), 0
    with evaluating(model):
        for batch in batches:
            dense_NV = _log_probs(model, batch)
            positions += len(dense_NV)
            for names in units:
                with _switched_on(model, names):
                    sums[names] += _divergence(dense_NV, _log_probs(model, batch))
    return {names: total / positions for names, total in sums.items()}


@contextmanager
def _switched_on(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    parts = [part for name in names for part in quantizers(model.get_submodule(name))]
    for part in parts:
        part.enabled = True
    try:
        yield
    finally:
        for part in parts:
            part.enabled = False


def _log_probs(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    logits: Tensor = model(**inputs).logits
    if logits.dim() == 3 and "attention_mask" in inputs:
        logits = logits[inputs["attention_mask"].bool()]
    return logits.flatten(0, -2).float().log_softmax(-1)


def _divergence(dense_NV: Tensor, other_NV: Tensor) -> float:
    summed: Tensor = (dense_NV.exp() * (dense_NV - other_NV)).sum()
    return max(float(summed), 0.0)
