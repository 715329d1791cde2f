"""Prune before training: importance, plan, smaller model, in one call (the order of Minitron)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from compress.contract import Batch
from compress.prune.importance import measure
from compress.prune.plan import PruneSizes, make_plan
from compress.prune.shrink import shrink
from compress.prune.structure import structure_of


def prune_and_shrink(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    ffn_density: float = 1.0,
    heads_density: float = 1.0,
    kv_density: float = 1.0,
    hidden_density: float = 1.0,
    layers: int | None = None,
    round_to: int = 32,
    importance: str = "activation",
) -> nn.Module:
    """A smaller model with the most important parts of `model` (Muralidharan 2024, Minitron).

    Meant to be distilled afterwards, with or without quantisation. Layers are chosen by block
    influence, everything else by `importance`.

    Args:
        model: a Llama-like decoder, or a BERT-like encoder (feed-forward and layers alone).
        batches: calibration data; a few hundred sequences are plenty.
        ffn_density: share of feed-forward channels kept.
        heads_density: share of query heads kept in each KV group.
        kv_density: share of KV groups kept.
        hidden_density: share of the hidden width kept; the most costly in quality.
        layers: whole layers kept; None keeps all.
        round_to: kept channels are a multiple of this.
        importance: `activation`, `l1` or `taylor`.

    Raises:
        UnsupportedModel, UnsupportedScheme: the model cannot give what is asked.

    Example:
        `prune_and_shrink(model, [batch], ffn_density=0.5, layers=6).config.intermediate_size`
    """
    sizes = PruneSizes(
        ffn_density=ffn_density,
        heads_density=heads_density,
        kv_density=kv_density,
        hidden_density=hidden_density,
        layers=layers,
        round_to=round_to,
    )
    structure = structure_of(model)
    sizes.check(structure)
    scores = measure(model, structure, batches, criterion=importance)
    return shrink(model, make_plan(structure, scores, sizes))


def calibration_batches(
    rows: Any, *, samples: int, seed: int = 0, batch_size: int = 8
) -> list[Batch]:
    """Some rows of a data set as batches, the same ones for the same seed.

    Args:
        rows: a data set by index, each row a dict of tensors.
        samples: how many are drawn; more than there are takes all.
        seed: of the draw.
        batch_size: rows to a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(rows), generator=generator)[:samples].tolist()
    parts = [drawn[i : i + batch_size] for i in range(0, len(drawn), batch_size)]
    return [default_collate([rows[i] for i in part]) for part in parts]
