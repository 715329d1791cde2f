"""Accuracy of classifiers, and of language models that choose among answers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from compress.contract import IGNORED, Batch
from compress.errors import BadInput
from compress.evaluate.quality import device_of, evaluating, token_loss


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of right answers.

    Args:
        accuracy: over all examples; `macro_f1` weighs every class alike.
        examples: how many were judged.
        correct: 1.0 or 0.0 for each, for paired bootstrap intervals.
    """

    accuracy: float
    macro_f1: float
    examples: int
    correct: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A multiple-choice item: the text before the answer, the answers, the right one's number."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


def classification_accuracy(
    model: nn.Module, batches: Iterable[Batch], *, max_batches: int | None = None
) -> Accuracy:
    """Accuracy and macro F1 of a sequence classifier, by torchmetrics.

    Args:
        model: a Hugging Face sequence classifier; its training mode is left as it was.
        batches: the model's inputs and `labels` (B,).
        max_batches: stop after so many; None takes all.

    Raises:
        BadInput: there is no example, or a label is none of the model's classes.
    """
    logits, labels = [], []
    with evaluating(model):
        for logits_BV, labels_B in classified(model, islice(batches, max_batches)):
            logits.append(logits_BV.cpu())
            labels.append(labels_B.cpu())
    if not logits:
        raise BadInput("there is no example to classify: the data is empty")
    return _accuracy(torch.cat(logits), torch.cat(labels))


def classified(model: nn.Module, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, V) in fp32 and labels (B,) of each batch, on the model's device."""
    device = device_of(model)
    for batch in batches:
        inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
        yield model(**inputs).logits.float(), batch["labels"].to(device)


def _accuracy(logits_NV: Tensor, labels_N: Tensor) -> Accuracy:
    classes = logits_NV.shape[1]
    if int(labels_N.max()) >= classes or int(labels_N.min()) < 0:
        raise BadInput(
            f"labels run from {int(labels_N.min())} to {int(labels_N.max())}, but the model has "
            f"{classes} classes: set data.labels to the model's classes in their order"
        )
    chosen_N = logits_NV.argmax(-1)
    return Accuracy(
        accuracy=float(multiclass_accuracy(chosen_N, labels_N, classes, average="micro")),
        macro_f1=float(multiclass_f1_score(chosen_N, labels_N, classes, average="macro")),
        examples=len(labels_N),
        correct=tuple((chosen_N == labels_N).float().tolist()),
    )


def choice_accuracy(model: nn.Module, tokenizer: Any, questions: Sequence[Question]) -> Accuracy:
    """Share of questions whose right answer has the least loss a token.

    Args:
        model: a causal language model.
        tokenizer: the model's own.
        questions: each with two choices or more.

    Raises:
        BadInput: there is no question, or one has no right answer among two or more.
    """
    bad = [q.prompt for q in questions if not 0 <= q.answer < len(q.choices) or len(q.choices) < 2]
    if bad or not questions:
        raise BadInput(
            f"questions without a right answer among two or more: {bad or 'no question'}"
        )
    most = max(len(q.choices) for q in questions)
    logits_NV = torch.full((len(questions), most), -torch.inf)
    for row_V, question in zip(logits_NV, questions, strict=True):
        for number, choice in enumerate(question.choices):
            row_V[number] = -_choice_loss(model, tokenizer, question.prompt, choice)
    return _accuracy(logits_NV, torch.tensor([q.answer for q in questions]))


def _choice_loss(model: nn.Module, tokenizer: Any, prompt: str, choice: str) -> float:
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not before:  # nothing precedes: an answer's first token needs something to follow
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        before = [token for token in known if token is not None][:1]
        if not before:
            raise BadInput(
                f"{prompt!r} is no token, and the tokenizer has none to begin a text with (bos, "
                "eos, pad): give the question a prompt"
            )
    answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
    labels = torch.tensor([[IGNORED] * len(before) + answer])
    return token_loss(
        model, [{"input_ids": torch.tensor([before + answer]), "labels": labels}]
    ).loss
