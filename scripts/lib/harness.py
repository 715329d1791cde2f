"""Tasks of lm-evaluation-harness on any open model; imported only where tasks are asked for."""

from typing import Any

from compress.errors import BadInput
from compress.evaluate.models import OpenModel


def harness_scores(
    model: OpenModel, tokenizer: Any, tasks: list[str], config: Any
) -> dict[str, float]:
    """Task and metric -> score, from lm_eval's own evaluator.

    Args:
        model: a language model of transformers' kind; ONNX files have no such interface there.
        tokenizer: the model's own.
        tasks: names that lm_eval knows, or paths of task files.
        config: `batch_size` and `device`.

    Raises:
        BadInput: a task is unknown, its data cannot be had, or the model is of another kind.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    if model.kind == "onnx" or model.task != "causal_lm":
        raise BadInput(f"tasks: lm_eval drives language models of transformers, not {model.name}")
    wrapped = HFLM(pretrained=model.module, tokenizer=tokenizer, batch_size=config.batch_size)
    try:
        found = lm_eval.simple_evaluate(model=wrapped, tasks=tasks, bootstrap_iters=1000)
    except (KeyError, ValueError, OSError, ConnectionError) as error:
        raise BadInput(f"tasks={','.join(tasks)}: {error}") from error
    return {
        f"{task} {metric.partition(',')[0]}": float(value)
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, int | float)
    }
