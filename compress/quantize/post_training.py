"""Post-training quantisation of a prepared model: where quantisation-aware training starts.

Legend: I input columns of one layer.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModel
from compress.quantize.calibration import (
    calibrate,
    calibration_batches,
    real_rows,
    run_batches,
)
from compress.quantize.error_feedback import error_feedback
from compress.quantize.fusion import quantizers, tie_fused, weight_quantizer
from compress.quantize.grid import merge, split, split_scale
from compress.quantize.inputs import QuantizeInput
from compress.quantize.observers import INITS
from compress.quantize.smoothing import require_seams, seams_of, smooth
from compress.transforms import Stage, trained_weight, transformed_layers, weight_before

STARTS = (*INITS, "smoothquant", "gptq")
Batches = list[Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a start looked at: for reports. `samples` is 0 where no data was needed."""

    init: str
    source: str
    samples: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@torch.no_grad()
def start(
    model: nn.Module,
    data: Any,
    *,
    init: str = "rtn",
    percentile: float = 0.999,
    samples: int = 64,
    seed: int = 0,
    smoothing: float = 0.5,
    damping: float = 0.01,
    source: str = "training rows",
) -> Calibration:
    """Scales (and weights) of a prepared model from its present weights and data: PTQ, in place.

    Args:
        model: after `prepare`.
        data: a data set with rows of tensors; looked at only where something needs data.
        init: `rtn` (round to nearest), `mse` (clipping of least squared error), `percentile`,
            `smoothquant` (outliers move from inputs into weights, then `mse`) or `gptq` (`mse`
            scales, then each column makes up for the errors before it).
        percentile: for `percentile`, share of magnitudes inside the range.
        samples: rows to look at.
        seed: of their draw.
        smoothing: for `smoothquant`, see `smoothing.smoothing_factors`.
        damping: for `gptq`, see `error_feedback`.
        source: where the rows come from, for the report.

    Raises:
        BadInput: the data is empty or not finite, or nothing fits the method.
        UnsupportedModel: smoothing changed what the model computes.
    """
    static = any(isinstance(m, QuantizeInput) and m.needs_calibration for m in model.modules())
    needs = static or init in ("smoothquant", "gptq")
    batches = list(calibration_batches(data, samples=samples, seed=seed)) if needs else []
    if init == "smoothquant":
        smooth_model(model, batches, smoothing=smoothing)
    initialize_weights(model, init=init if init in INITS else "mse", percentile=percentile)
    if static:
        calibrate(model, batches)
    if init == "gptq":
        feed_errors(model, batches, damping=damping)
    seen = sum(len(next(iter(batch.values()))) for batch in batches)
    return Calibration(init=init, source=source if needs else "none", samples=seen, seed=seed)


def initialize_weights(model: nn.Module, *, init: str = "rtn", percentile: float = 0.999) -> None:
    """Scales of every weight quantiser anew from the present (masked) weights."""
    layers = quantized_layers(model)
    for layer in layers.values():
        quantizer = weight_quantizer(layer)
        assert quantizer is not None
        before = weight_before(layer, Stage.QUANTIZE).detach()
        quantizer.initialize(before, init=init, percentile=percentile)
    tie_fused(model, layers)


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers with a weight quantiser, by name."""
    return {n: m for n, m in transformed_layers(model) if weight_quantizer(m) is not None}


def smooth_model(model: nn.Module, batches: Batches, *, smoothing: float) -> None:
    """SmoothQuant over every seam of the model, proven not to change its dense function.

    Raises:
        BadInput: there is no seam, or no data.
        UnsupportedModel: the dense model computes something else afterwards.
    """
    layers = quantized_layers(model)
    seams = list(seams_of(model, layers))
    require_seams(seams)
    largest: dict[str, Tensor] = {}
    present: dict[str, Tensor] = {}

    def note(name: str, values: Tensor) -> None:
        seen = real_rows(values, present.get("attention_mask")).abs().amax(0)
        largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

    with _dense(model):
        with watched({s.names[0]: s.readers[0] for s in seams}, note):
            run_batches(model, batches, present.update)
        before = _output(model, batches[0])
        for seam in seams:
            smooth(seam, largest[seam.names[0]], smoothing=smoothing)
        after = _output(model, batches[0])
    if not torch.allclose(before, after, rtol=1e-2, atol=1e-2 * float(before.abs().max())):
        gap = float((before - after).abs().max())
        raise UnsupportedModel(
            f"init=smoothquant: {type(model).__name__} computes something else once a norm is "
            f"scaled (largest gap {gap:.3g}); use init=gptq or mse"
        )


def feed_errors(model: nn.Module, batches: Batches, *, damping: float) -> None:
    """GPTQ block by block: each sees the inputs that the quantised blocks before it give.

    Padding counts for nothing.
    """
    present: dict[str, Tensor] = {}
    for layers in blocks_of(quantized_layers(model)).values():
        moments: dict[str, Tensor] = {}
        counts: dict[str, int] = {}

        def add(
            name: str, values: Tensor, moments: dict[str, Tensor] = moments,
            counts: dict[str, int] = counts,
        ) -> None:  # fmt: skip
            rows = real_rows(values, present.get("attention_mask"))
            moments[name] = moments[name] + rows.T @ rows if name in moments else rows.T @ rows
            counts[name] = counts.get(name, 0) + len(rows)

        linear = {n: m for n, m in layers.items() if isinstance(m, nn.Linear)}
        if not linear:
            continue
        with watched(linear, add):
            run_batches(model, batches, present.update)
        for name, layer in linear.items():
            if name in moments:
                feed_layer(layer, moments[name] / counts[name], damping=damping)


def feed_layer(layer: nn.Module, moment_II: Tensor, *, damping: float) -> None:
    """`error_feedback` on one layer; the change goes to the trained weight, under any adapter."""
    quantizer = weight_quantizer(layer)
    assert quantizer is not None
    before = weight_before(layer, Stage.QUANTIZE)
    masked = weight_before(layer, Stage.MASK)
    alive = None if masked is before else (before != 0) | (masked == 0)
    parts = split(quantizer.args, before.float())
    scale = quantizer.grid.round_scale(quantizer.scale().float(), quantizer.global_scale)
    steps = merge(quantizer.args, split_scale(quantizer.args, scale).expand(parts.shape))
    after = error_feedback(before, moment_II, steps, quantizer.grid, damping=damping, mask_OI=alive)
    trained_weight(layer).add_(after - before)


def blocks_of(layers: Mapping[str, nn.Module]) -> dict[str, dict[str, nn.Module]]:
    """Layers by the numbered block they lie in, in model order.

    >>> list(blocks_of({"h.0.q": nn.Identity(), "h.1.q": nn.Identity(), "h.0.o": nn.Identity()}))
    ['h.0', 'h.1']
    """
    blocks: dict[str, dict[str, nn.Module]] = {}
    for name, layer in layers.items():
        parts = name.split(".")
        digit = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        blocks.setdefault(".".join(parts[: digit + 1]), {})[name] = layer
    return blocks


@contextmanager
def watched(layers: Mapping[str, nn.Module], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls `note(name, input)` whenever one of the layers runs, its input already quantised."""

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, args: note(name, args[0].detach())

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _dense(model: nn.Module) -> Iterator[None]:
    """Every quantiser off; as they were afterwards."""
    were = {part: part.enabled for part in quantizers(model)}
    for part in were:
        part.enabled = False
    try:
        yield
    finally:
        for part, enabled in were.items():
            part.enabled = enabled


def _output(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    training = model.training
    model.eval()
    logits: Tensor = model(**inputs).logits.float()
    model.train(training)
    return logits
