"""Loss terms on logits: each gives its summed value over a chunk and its gradient, no autograd.

Legend: C rows of a chunk, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.contract import LogitChunk


@dataclass(frozen=True, kw_only=True)
class LabelLoss:
    """Cross-entropy with the next token, in nats.

    Args:
        weight: factor in the total; 0.0 leaves the labels unused.
    """

    weight: float = 1.0

    def __call__(self, chunk: LogitChunk) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy and softmax(logits) - onehot(label), (C, V)."""
        log_probs_CV = chunk.log_probs()
        picked_C = log_probs_CV.gather(1, chunk.labels_C[:, None])
        gradient_CV = log_probs_CV.exp()
        gradient_CV.scatter_add_(1, chunk.labels_C[:, None], -torch.ones_like(picked_C))
        return -picked_C.sum(), gradient_CV
