"""What any trainer minimises: the labels' loss and the terms of every compression callback."""

from collections.abc import Iterable

from torch import Tensor

from compress.contract import LogitTerm, LossSource, Step
from compress.distill.chunked import head_losses
from compress.distill.terms import LabelLoss
from compress.errors import BadInput


def joint_loss(
    step: Step, sources: Iterable[LossSource], *, label_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of all terms, and each by its name, detached.

    Args:
        step: batch, student and teacher of this step.
        sources: the callbacks, in the order of the recipe.
        label_weight: of the labels' own loss; 0.0 learns from the callbacks' terms alone.

    Raises:
        BadInput: two callbacks use one name for a term.
    """
    tensors, logit_terms = _collect(step, sources, label_weight)
    total, values = head_losses(step, logit_terms)
    for name, value in tensors.items():
        total, values[name] = total + value, value.detach()
    return total, values


def _collect(
    step: Step, sources: Iterable[LossSource], label_weight: float
) -> tuple[dict[str, Tensor], dict[str, LogitTerm]]:
    tensors: dict[str, Tensor] = {}
    logit_terms: dict[str, LogitTerm] = {"labels": LabelLoss(weight=label_weight)}
    for source in sources:
        for name, term in source.losses(step):
            if name in tensors or name in logit_terms:
                raise BadInput(f"two loss terms are called {name!r}; give one callback a name=")
            if isinstance(term, Tensor):
                tensors[name] = term
            else:
                logit_terms[name] = term
    return tensors, logit_terms
