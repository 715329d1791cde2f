"""Checks of a configuration that need nothing heavy: they answer within a second."""

import os
from pathlib import Path
from typing import Any

from compress.errors import BadInput


def check_paths(config: Any) -> None:
    """Refuse paths that do not exist and numbers that no run can take, all at once.

    Raises:
        BadInput: every problem found, one a line.
    """
    problems = [*_data_problems(config), *_model_problems(config), *_number_problems(config)]
    if problems:
        raise BadInput("\n".join(problems))


def _data_problems(config: Any) -> list[str]:
    path = config.data.get("path")
    paths = [path] if isinstance(path, str) else list(path or [])
    absent = [p for p in paths if not _is_glob(p) and not Path(p).expanduser().exists()]
    return [f"data.path={p}: there is no such file or folder" for p in absent]


def _is_glob(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def _model_problems(config: Any) -> list[str]:
    problems = []
    for who in ("teacher", "student"):
        path = config[who].path
        looks_local = path is not None and (path.startswith((".", "/", "~")) or path.count("/") > 1)
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        if path is not None and not Path(path).expanduser().exists() and (looks_local or offline):
            problems.append(f"{who}.path={path}: there is no such folder")
    return problems


def _number_problems(config: Any) -> list[str]:
    positive = {
        f"trainer.{key}": config.trainer[key]
        for key in ("max_steps", "batch_size", "accumulate", "validate_every", "checkpoint_every")
    }
    return [f"{key}={value}: must be at least 1" for key, value in positive.items() if value < 1]
