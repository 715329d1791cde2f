"""Calibration: which samples, and what a model's input quantisers learn from them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset, default_collate

from compress.errors import BadInput
from compress.quantize.inputs import QuantizeInput


def calibrate(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> int:
    """Find static input scales from batches (`model(**batch)`); returns how many it saw.

    Weights are quantised meanwhile, inputs not yet. Padding counts for nothing. A model without
    static inputs is left alone.

    Raises:
        BadInput: an input was never seen, or only zeros or infinities.
    """
    waiting = [m for m in model.modules() if isinstance(m, QuantizeInput) and m.needs_calibration]
    if not waiting:
        return 0
    present: dict[str, Any] = {}
    for quantizer in waiting:
        quantizer.observe(lambda values: real_rows(values, present.get("attention_mask")))
    count = run_batches(model, batches, present.update)
    for quantizer in waiting:
        quantizer.calibrated()
    return count


def calibration_batches(
    data: Any, *, samples: int, seed: int, rows_per_batch: int = 8
) -> Iterator[Mapping[str, torch.Tensor]]:
    """Batches of rows of a data set, drawn by indices of their own: no loader is disturbed.

    Args:
        data: a data set; one without a length gives its first rows.
        samples: rows in all; more than there are takes all of them.
        seed: of the draw; the same seed takes the same rows.
        rows_per_batch: rows that run together.
    """
    if isinstance(data, IterableDataset):
        rows: Iterator[Any] = islice(iter(data), samples)
    else:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(data), generator=generator)[:samples]
        rows = (data[int(index)] for index in chosen)
    while batch := list(islice(rows, rows_per_batch)):
        yield default_collate(batch)


def real_rows(values: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
    """Values (B, T, ..., C) as rows (N, C), in fp32, without the positions that are padding.

    Values of another shape, such as a pooled state (B, C), have no padding.

    >>> real_rows(torch.ones(1, 3, 2), torch.tensor([[1, 1, 0]])).shape
    torch.Size([2, 2])
    """
    if mask_BT is not None and values.shape[:2] == mask_BT.shape and values.dim() > 2:
        values = values[mask_BT.to(values.device).bool()]
    return values.flatten(0, -2).float()


def run_batches(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    each: Callable[[Mapping[str, Any]], None] = lambda batch: None,
) -> int:
    """Forward passes without gradients, in evaluation mode; returns how many.

    `each` is called with every batch before it runs, its `attention_mask` None where it has none:
    whoever keeps the last one must not take it for the next batch's.

    Raises:
        BadInput: there was no batch.
    """
    device, count = next(model.parameters()).device, 0
    with evaluating(model):
        for batch in batches:
            inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
            each({"attention_mask": None, **batch})
            model(**inputs)
            count += 1
    if count == 0:
        raise BadInput("calibration got no batch: the data set is empty or calibration_samples=0")
    return count


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without gradients; the former mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train(training)
