"""How hard each sequence is for the student, before any teacher ran, without keeping logits.

Legend: B sequences, L positions, N positions that count, C rows of a chunk, V vocabulary.
"""

import torch
from torch import Tensor

from compress.contract import Head, LogitChunk, Step
from compress.distill.chunked import CHUNK_ELEMENTS


@torch.no_grad()
def difficulty(step: Step, *, measure: str = "label_loss") -> Tensor:
    """Mean of each sequence's positions (B,), fp32; a sequence without labels has 0.

    Args:
        step: its student trace and labels.
        measure: `label_loss`, what the student loses by the labels; `entropy`, how unsure it is
            (needs no true label, and cannot tell surely wrong from surely right).
    """
    sequences, length = step.student.hidden_BLH.shape[:2]
    hidden_NH = step.student.hidden_BLH.flatten(0, 1).index_select(0, step.rows_N)
    head = _lowered(step.student.head, hidden_NH)
    totals_B = hidden_NH.new_zeros(sequences, dtype=torch.float32)
    rows_per_chunk = max(1, CHUNK_ELEMENTS // head.weight_VH.shape[0])
    for start in range(0, len(hidden_NH), rows_per_chunk):
        part = slice(start, start + rows_per_chunk)
        chunk = LogitChunk(
            logits_CV=head(hidden_NH[part].to(head.weight_VH.dtype)).float(),
            labels_C=step.labels_N[part], rows_C=step.rows_N[part],
        )  # fmt: skip
        totals_B.index_add_(0, chunk.rows_C // length, _measure(chunk, measure))
    counts_B = torch.bincount(step.rows_N // length, minlength=sequences)
    return totals_B / counts_B.clamp(min=1)


def _lowered(head: Head, hidden: Tensor) -> Head:
    kind = hidden.device.type
    low = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if low else hidden.dtype
    return Head(weight_VH=head.weight_VH.to(dtype), bias_V=head.bias_V)


def _measure(chunk: LogitChunk, measure: str) -> Tensor:
    log_p = chunk.log_probs()
    if measure == "entropy":
        entropy_C: Tensor = -torch.linalg.vecdot(log_p.exp(), log_p)
        return entropy_C
    return -log_p.gather(1, chunk.labels_C[:, None]).squeeze(1)


def bins_of(difficulty_B: Tensor, *, bins: int) -> Tensor:
    """Each sequence's bin by its rank in the batch, the hardest in the last; ties by index.

    >>> bins_of(torch.tensor([3.0, 1.0, 2.0, 4.0]), bins=2)
    tensor([1, 0, 0, 1])
    """
    order = difficulty_B.argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks * bins // len(order)
