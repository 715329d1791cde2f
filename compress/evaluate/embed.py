"""How close one encoder's embeddings are to another's, and whether they rank texts alike.

Legend: N sequences, H and T the widths of the two encoders.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from compress.contract import Batch
from compress.errors import BadInput
from compress.evaluate.quality import device_of, evaluating
from compress.models import trace_embedding
from compress.taps import EMBEDDING

MOST_ROWS = 2048
"""Rankings compare every pair of rows: more rows than this would take gigabytes."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingAgreement:
    """What a search would notice when one encoder takes the other's place.

    Args:
        cosine: mean cosine of the two embeddings of a sequence; None where widths differ.
        spearman: rank correlation of the similarities of all pairs of ranked sequences.
        neighbours: share of those whose nearest other one is the same.
        sequences: how many were compared by their cosine.
        ranked: how many of them, the first ones, were ranked: `MOST_ROWS` at most.
        cosines: of each sequence, for intervals; empty where widths differ.
        same_neighbour: 1.0 or 0.0 for each ranked sequence.
    """

    cosine: float | None
    spearman: float
    neighbours: float
    sequences: int
    ranked: int
    cosines: tuple[float, ...] = field(repr=False)
    same_neighbour: tuple[float, ...] = field(repr=False)

    def figures(self) -> dict[str, float]:
        """The figures alone, for reports."""
        told = {"spearman": self.spearman, "neighbours": self.neighbours, "ranked": self.ranked}
        return told if self.cosine is None else {"cosine": self.cosine, **told}


def embeddings_of(
    model: nn.Module, batches: Iterable[Batch], *, max_batches: int | None = None
) -> Tensor:
    """Mean last hidden state of each sequence, (N, H), fp32 on the CPU.

    Args:
        model: a Hugging Face encoder; its training mode is left as it was.
        batches: the model's inputs; labels are left aside.
        max_batches: stop after so many; None takes all.

    Raises:
        BadInput: there is no sequence, or an embedding is not finite.
    """
    found, device = [], device_of(model)
    with evaluating(model):
        for batch in islice(batches, max_batches):
            inputs = {k: v.to(device) for k, v in batch.items()}
            found.append(trace_embedding(model, inputs).features[EMBEDDING][:, 0].float().cpu())
    if not found:
        raise BadInput("there is no sequence to embed: the data is empty")
    rows_NH = torch.cat(found)
    if not rows_NH.isfinite().all():
        raise BadInput("an embedding is not finite: the model has diverged")
    return rows_NH


def embedding_agreement(ours_NH: Tensor, theirs_NT: Tensor) -> EmbeddingAgreement:
    """Compare two encoders' embeddings of the same sequences.

    Args:
        ours_NH: of one encoder, as `embeddings_of` gives them.
        theirs_NT: of the other; another width leaves out the cosine alone.

    Raises:
        BadInput: they are not of equally many sequences, or of fewer than three.
    """
    if len(ours_NH) != len(theirs_NT) or len(ours_NH) < 3:
        raise BadInput(
            f"embeddings of {len(ours_NH)} and {len(theirs_NT)} sequences: rankings need the same "
            "sequences, three or more"
        )
    cosines = torch.zeros(0)
    if ours_NH.shape == theirs_NT.shape:
        cosines = nn.functional.cosine_similarity(ours_NH, theirs_NT)
    ours_NN, theirs_NN = similarities(ours_NH), similarities(theirs_NT)
    above = torch.triu_indices(len(ours_NN), len(ours_NN), offset=1)
    same_N = (_nearest(ours_NN) == _nearest(theirs_NN)).float()
    return EmbeddingAgreement(
        cosine=float(cosines.mean()) if len(cosines) else None,
        spearman=spearman(ours_NN[tuple(above)], theirs_NN[tuple(above)]),
        neighbours=float(same_N.mean()), sequences=len(ours_NH), ranked=len(ours_NN),
        cosines=tuple(cosines.tolist()), same_neighbour=tuple(same_N.tolist()),
    )  # fmt: skip


def similarities(rows_NH: Tensor) -> Tensor:
    """Cosines of all pairs of the first `MOST_ROWS` rows."""
    unit_NH = nn.functional.normalize(rows_NH[:MOST_ROWS], dim=1)
    return unit_NH @ unit_NH.T


def spearman(one_P: Tensor, other_P: Tensor) -> float:
    """Correlation of ranks, equal values sharing their mean rank; NaN where one is constant.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 21.0]))
    1.0
    """
    # torchmetrics ranks equal values one by one, and half a million cosines have many
    ranks_2P = torch.stack([_ranks(one_P), _ranks(other_P)])
    return round(float(torch.corrcoef(ranks_2P)[0, 1]), 12)


def _ranks(values_P: Tensor) -> Tensor:
    _, place_P, counts = values_P.unique(return_inverse=True, return_counts=True)
    ranks: Tensor = (counts.cumsum(0) - (counts - 1) / 2).double()
    return ranks[place_P]


def _nearest(similar_NN: Tensor) -> Tensor:
    return similar_NN.clone().fill_diagonal_(-torch.inf).argmax(1)
