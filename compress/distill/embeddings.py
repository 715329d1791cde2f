"""Encoders that are judged by the embeddings they give: no labels, a distance to the teacher.

Legend: B sequences, H student width, T teacher width.
"""

import torch
from torch import Tensor, nn

from compress.contract import Batch, Teacher, Want
from compress.distill.features import cosine, relations
from compress.errors import BadInput
from compress.models import trace_embedding
from compress.taps import EMBEDDING


def unlabelled(batch: Batch) -> dict[str, Tensor]:
    """The batch with one label a sequence that no loss looks at: losses count sequences by it."""
    return {**batch, "labels": batch["input_ids"].new_zeros(batch["input_ids"].shape[0])}


@torch.no_grad()
def embedding_distance(student: nn.Module, teacher: Teacher | None, batch: Batch) -> Tensor:
    """Mean 1 - cosine of the two embeddings of each sequence; 0 where they point the same way.

    Of unequal widths: how differently the batch's sequences relate to one another (KL, nats).

    Raises:
        BadInput: there is no teacher.
    """
    if teacher is None:
        raise BadInput("embeddings are measured against a teacher's, but there is none")
    ours_B1H = trace_embedding(student, batch).features[EMBEDDING].float()
    signal = teacher.signal(batch, Want(features=(EMBEDDING,)))
    theirs_B1T = signal.features[EMBEDDING].float()
    if ours_B1H.shape == theirs_B1T.shape:
        return cosine(ours_B1H, theirs_B1T, ours_B1H.new_ones(ours_B1H.shape[:2]))
    ours_1BH, theirs_1BT = ours_B1H.transpose(0, 1), theirs_B1T.transpose(0, 1)
    return relations(ours_1BH, theirs_1BT, ours_1BH.new_ones(ours_1BH.shape[:2]))
