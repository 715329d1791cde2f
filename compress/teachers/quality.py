"""A teacher's own loss on held-out batches, asked through its signal: sharded teachers have it too.

Legend: C rows of a chunk, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from compress.contract import IGNORED, Batch, DenseSignal, Teacher, Want

CHUNK_ELEMENTS = 1 << 22


def teacher_loss(
    teacher: Teacher, batches: Sequence[Batch], *, device: torch.device
) -> float | None:
    """Mean nats a token, the batches shared out over the ranks; None where logits are not whole.

    Every rank asks equally often: one without a batch of its own asks about the first one, and
    does not count it.

    Args:
        teacher: all ranks call this together.
        batches: the same ones on every rank; `labels` as everywhere.
        device: where the teacher runs.
    """
    rank, ranks = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, ranks = distributed.get_rank(), distributed.get_world_size()
    sums = torch.zeros(2, dtype=torch.float64)
    for first in range(0, len(batches), ranks):
        own = first + rank
        batch = {k: v.to(device) for k, v in batches[own if own < len(batches) else 0].items()}
        signal = teacher.signal(batch, Want(logits=True))
        if not isinstance(signal, DenseSignal):
            return None
        if own < len(batches):
            sums += _summed(signal, batch["labels"])
    if ranks > 1:
        sums = sums.to(device)
        distributed.all_reduce(sums)
    return float(sums[0] / sums[1])


@torch.no_grad()
def _summed(signal: DenseSignal, labels_BL: Tensor) -> Tensor:
    """Summed nats and predicted tokens."""
    assert signal.hidden_SLH is not None and signal.head is not None
    labels = labels_BL[:, 1:].flatten()
    hidden = signal.hidden_SLH[:, :-1].flatten(0, 1)[labels != IGNORED]
    labels = labels[labels != IGNORED]
    rows = max(1, CHUNK_ELEMENTS // signal.head.weight_VH.shape[0])
    total = 0.0
    for hidden_CH, labels_C in zip(
        torch.split(hidden, rows), torch.split(labels, rows), strict=True
    ):
        logits_CV = signal.head(hidden_CH).float()
        total += float(torch.nn.functional.cross_entropy(logits_CV, labels_C, reduction="sum"))
    return torch.tensor([total, float(len(labels))], dtype=torch.float64)
