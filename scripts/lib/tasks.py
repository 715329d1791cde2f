"""What a run's task decides: what it is measured by, and what cannot go with it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from compress.errors import BadInput

EMBEDDING_UNITS = {True: "1 - cosine", False: "nats of relations"}
"""Of the distance between embeddings, by whether both are equally wide."""

NEED_LOGITS = ("LogitsDistillation", "RoutedDistillation", "OnPolicyDistillation")


def task_problems(config: Any) -> Iterator[str]:
    """What an embedding run cannot be told; needs nothing heavy."""
    if config.task != "embedding":
        return
    if config.teacher.kind == "none":
        yield "task=embedding has no labels: it learns from a teacher alone, but teacher=none"
    elif config.teacher.host != "local":
        yield (
            f"task=embedding with teacher.host={config.teacher.host}: embeddings are asked of a "
            "teacher in the run's own process; use teacher.host=local"
        )
    if config.compare:
        yield (
            "compare=true with task=embedding: the dense and the teacherless student learn from "
            "labels, and embeddings have none; the report's quality.start and start_ptq remain"
        )
    for name, settings in config.callbacks.items():
        kind = str(settings.get("_target_", "")).rpartition(".")[2]
        if kind in NEED_LOGITS:
            yield (
                f"callbacks.{name}: {kind} compares next-token distributions, and embeddings have "
                f"none; use FeatureDistillation, and leave this one out: ~callbacks.{name}"
            )


def measure_of(task: str) -> dict[str, Any]:
    """Name and unit of what a run's models are compared by."""
    if task == "embedding":
        return {"metric": "distance", "unit": EMBEDDING_UNITS[True]}
    return {
        "metric": "loss",
        "unit": "nats/example" if task == "classification" else "nats/token",
    }


def loss_of(
    task: str, model: torch.nn.Module, batches: Callable[[], Any], *, teacher: Any = None
) -> float:
    """Mean nats a token or example; for embeddings the mean distance to the teacher's."""
    if task == "embedding":
        return distance_of(model, batches, teacher)
    if task == "classification":
        from compress.evaluate.classifier_loss import classifier_loss

        return classifier_loss(model, batches())
    from compress.evaluate.quality import token_loss

    return float(token_loss(model, batches()).loss)


def distance_of(model: torch.nn.Module, batches: Callable[[], Any], teacher: Any) -> float:
    """Mean of `compress.distill.embeddings.embedding_distance` over the sequences."""
    from compress.distill.embeddings import embedding_distance
    from compress.evaluate.quality import device_of, evaluating

    total, sequences = 0.0, 0
    with evaluating(model):
        for batch in batches():
            inputs = {k: v.to(device_of(model)) for k, v in batch.items()}
            rows = len(inputs["input_ids"])
            total += rows * float(embedding_distance(model, teacher, inputs))
            sequences += rows
    if not sequences:
        raise BadInput("there is no sequence to embed: the validation part is empty")
    return total / sequences


def agreement_of(
    model: torch.nn.Module, teacher: torch.nn.Module, batches: Callable[[], Any]
) -> dict[str, float]:
    """How the embeddings of held-out sequences agree with the teacher's."""
    from compress.evaluate.embed import embedding_agreement, embeddings_of

    found = embedding_agreement(embeddings_of(model, batches()), embeddings_of(teacher, batches()))
    return found.figures()
