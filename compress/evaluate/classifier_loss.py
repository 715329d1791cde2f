"""Mean cross-entropy of a sequence classifier: the loss that its runs are compared by."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn

from compress.contract import Batch
from compress.errors import BadInput
from compress.evaluate.quality import device_of, evaluating


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
    device, total, examples = device_of(model), 0.0, 0
    with evaluating(model):
        for batch in islice(batches, max_batches):
            inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
            logits_BV, labels_B = model(**inputs).logits.float(), batch["labels"].to(device)
            total += float(nn.functional.cross_entropy(logits_BV, labels_B, reduction="sum"))
            examples += len(labels_B)
    if not examples or not torch.tensor(total).isfinite():
        raise BadInput(f"the loss over {examples} examples is {total}: no data, or not finite")
    return total / examples
