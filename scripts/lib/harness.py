"""Tasks of lm-evaluation-harness on any open model; imported only where tasks are asked for."""

import re
from collections.abc import Sequence
from pathlib import Path
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
        tasks: names that lm_eval knows, or task files of one's own (`.yaml`, with a `task:` line).
        config: `batch_size` and `device`.

    Raises:
        BadInput: a task is unknown, its data cannot be had, or the model is of another kind.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names, folders = task_names(tasks)
    if model.kind == "onnx" or model.task != "causal_lm":
        raise BadInput(f"tasks: lm_eval drives language models of transformers, not {model.name}")
    wrapped = HFLM(pretrained=model.module, tokenizer=tokenizer, batch_size=config.batch_size)
    try:
        # its own thousands are read only where one of them is asked for
        manager = TaskManager(
            include_path=folders or None, include_defaults=set(names) != set(own_names(tasks))
        )
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=names, bootstrap_iters=1000, task_manager=manager
        )
    except (KeyError, ValueError, OSError, ConnectionError) as error:
        raise BadInput(f"tasks={','.join(tasks)}: {error}") from error
    return {
        f"{task} {metric.partition(',')[0]}": float(value)
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, int | float) and metric != "sample_len"
    }


def task_names(tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of tasks, those of files read from their `task:` line; and the files' folders.

    Raises:
        BadInput: a file is missing or names no task; all are listed.
    """
    own, wrong = {}, []
    for task in filter(is_file, tasks):
        path = Path(task)
        line = re.search(r"^task:\s*(\S+)", path.read_text(), re.M) if path.is_file() else None
        if line is None:
            wrong.append(f"{task}: {'has no line `task:`' if path.is_file() else 'no such file'}")
        else:
            own[task] = line[1]
    if wrong:
        raise BadInput("tasks: " + "; ".join(wrong))
    folders = dict.fromkeys(str(Path(task).absolute().parent) for task in own)
    return [own.get(task, task) for task in tasks], list(folders)


def own_names(tasks: Sequence[str]) -> list[str]:
    """The names of those tasks that are files."""
    return task_names([task for task in tasks if is_file(task)])[0]


def is_file(task: str) -> bool:
    """Whether a word of `tasks` means a file."""
    return task.endswith((".yaml", ".yml"))
