"""Whether opened models can be measured together, on the rows that there are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.errors import BadInput
from compress.evaluate.models import EngineModel, OpenModel
from compress.models import config_of
from compress.scripts.lib.restore import is_run_folder
from compress.scripts.lib.resume import run_of

CHECKPOINTS = {"model": "checkpoint", "baseline": "baseline_checkpoint"}
"""The setting that names each one's checkpoint."""


def check_checkpoints(config: Any) -> None:
    """Refuse a checkpoint of what has none, or of another run.

    Raises:
        BadInput: one line for each.
    """
    problems = []
    for who, key in CHECKPOINTS.items():
        asked, path = config[key], config[who]
        if asked in (None, "last"):
            continue
        if path is None or not is_run_folder(path):
            given = f"{who}={path} is no run folder" if path else f"there is no {who}="
            problems.append(f"{key}={asked}: {given}, and a run alone has checkpoints")
        elif (owner := run_of(asked)) is not None and owner.resolve() != Path(path).resolve():
            problems.append(f"{key}={asked} is of the run {owner}, and {who}={path} is another")
    if problems:
        listed = ", ".join(f"{key}= is of {who}=" for who, key in CHECKPOINTS.items())
        raise BadInput("\n".join([*problems, listed]))


def check_together(opened: Mapping[str, OpenModel], *, task: str | None = None) -> None:
    """Refuse models of different kinds, and tokenizers that number tokens differently.

    Args:
        opened: `model` and, where there is one, `baseline`.
        task: what they were asked to do; None leaves it to them.

    Raises:
        BadInput: names both, and how far they differ.
    """
    tasks = {who: model.task for who, model in opened.items()}
    if len({*tasks.values(), *([task] if task else [])}) > 1:
        asked = f", and task={task}" if task else ""
        listed = ", ".join(f"{who}={opened[who].name} does {does}" for who, does in tasks.items())
        raise BadInput(f"{listed}{asked}: only models of one task are measured together")
    if "embedding" in tasks.values() and (names := _in_engines(opened)):
        raise BadInput(f"{', '.join(names)}: embeddings are measured of checkpoints, not of graphs")
    tokenizers = [m.tokenizer for m in opened.values()]
    if len(tokenizers) == 2 and None not in tokenizers:
        ours, theirs = (tokenizer.get_vocab() for tokenizer in tokenizers)
        if differing := conflicts(ours, theirs):
            raise BadInput(
                f"the tokenizers of model and baseline differ: {differing} of {len(ours)} tokens "
                "have other numbers. A loss a token of the one says nothing beside the other's"
            )


def _in_engines(opened: Mapping[str, OpenModel]) -> list[str]:
    return [m.name for m in opened.values() if isinstance(m.module, EngineModel)]


def conflicts(ours: Mapping[str, int], theirs: Mapping[str, int]) -> int:
    """Tokens of ours with another number in theirs, or whose number stands for another there.

    Tokens that one of the two was given in addition do not count.

    >>> conflicts({"a": 0, "b": 1}, {"a": 0, "b": 1, "<pad>": 2})
    0
    >>> conflicts({"a": 0, "b": 1}, {"b": 0, "c": 1})
    2
    """
    named = {number: token for token, number in theirs.items()}
    return sum(
        theirs.get(token, number) != number or named.get(number, token) != token
        for token, number in ours.items()
    )


def check_rows(opened: Mapping[str, OpenModel], data: Any, rows: Any) -> None:
    """Refuse rows that a model cannot take: too many tokens, or numbers it has no place for.

    Raises:
        BadInput: lists every model that cannot, with the numbers.
    """
    longest = len(rows[0]["input_ids"]) if rows is not None and len(rows) else 0
    problems = []
    for who, model in opened.items():
        size, limit = _sizes(model.module)
        if size < len(data.tokenizer):
            problems.append(
                f"{who}={model.name} has {size} tokens, but the tokenizer of the data "
                f"{len(data.tokenizer)}: give it its own tokenizer"
            )
        if limit and longest > limit:
            problems.append(
                f"{who}={model.name} takes {limit} tokens, and the rows have {longest}: "
                f"data.sequence_length={limit}"
            )
    if problems:
        raise BadInput("\n".join(problems))


def _sizes(module: Any) -> tuple[int, int]:
    """Tokens of the vocabulary, and of the longest sequence; 0 where that is not told."""
    if isinstance(module, EngineModel):
        return module.engine.vocab_size, 0
    config = config_of(module)
    return int(config.vocab_size), int(getattr(config, "max_position_embeddings", 0) or 0)
