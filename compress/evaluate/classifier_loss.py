"""Mean cross-entropy of a sequence classifier: the loss that its runs are compared by."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn

from compress.contract import Batch
from compress.errors import BadInput
from compress.evaluate.classify import classified
from compress.evaluate.quality import evaluating


def classifier_loss(
    model: nn.Module, batches: Iterable[Batch], *, max_batches: int | None = None
) -> float:
    """Mean cross-entropy with the right class, in nats an example.

    Args:
        model: a Hugging Face sequence classifier; its training mode is left as it was.
        batches: the model's inputs and `labels` (B,).
        max_batches: stop after so many; None takes all.

    Raises:
        BadInput: there is no example, or the loss is not finite.
    """
    total, examples = 0.0, 0
    with evaluating(model):
        for logits_BV, labels_B in classified(model, islice(batches, max_batches)):
            total += float(nn.functional.cross_entropy(logits_BV, labels_B, reduction="sum"))
            examples += len(labels_B)
    if not examples or not torch.tensor(total).isfinite():
        raise BadInput(f"the loss over {examples} examples is {total}: no data, or not finite")
    return total / examples
