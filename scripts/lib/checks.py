"""Checks of a configuration that need nothing heavy: they answer within a second."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.errors import BadInput, did_you_mean
from compress.scripts.lib.devices import device_problems
from compress.scripts.lib.launch import rank_here
from compress.scripts.lib.limits import limit_problems
from compress.scripts.lib.strategies import strategy_problems
from compress.scripts.lib.tasks import task_problems
from compress.teachers.http_json import url_problem, without_secrets

PATHS_OF_DATA = ("path", "validation_path", "roots")


def check_paths(config: Any) -> None:
    """Refuse paths that do not exist and numbers that no run can take, all at once.

    Raises:
        BadInput: every problem found, one a line.
    """
    problems = [
        *_data_problems(config),
        *_model_problems(config),
        *limit_problems(config),
        *_together_problems(config),
        *_run_dir_problems(config),
        *strategy_problems(config),
        *device_problems(config.trainer),
        *_host_problems(config),
        *task_problems(config),
    ]
    if problems:
        raise BadInput("\n".join(problems))


def _data_problems(config: Any) -> Iterator[str]:
    for key in PATHS_OF_DATA:
        named = config.data.get(key)
        if named is None:
            continue
        paths = [named] if isinstance(named, str) else list(named)
        if not paths:
            yield f"data.{key}=[]: the list is empty"
        yield from (f"data.{key}={p!s:.200}: {why}" for p in paths if (why := _why_absent(p)))


def _why_absent(path: Any) -> str | None:
    if not isinstance(path, str) or not path:
        return "this is no path"
    if why := _why_no_path(path):
        return why
    place = Path(path).expanduser()
    if glob.has_magic(path) or place.exists():
        return None
    siblings = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
    return f"there is no such file or folder.{did_you_mean(place.name, siblings)}"


def _why_no_path(path: str) -> str | None:
    """Why the machine cannot even look there: a name too long, a folder that is closed to us."""
    try:
        Path(path).expanduser().exists()
        return "this is no path" if "\0" in path else None
    except (OSError, RuntimeError) as error:  # the latter: the home of a user that is not there
        return f"this is no path to use ({getattr(error, 'strerror', None) or error})"


def _model_problems(config: Any) -> Iterator[str]:
    for who in ("teacher", "student"):
        path = config[who].get("path")
        if path is None:
            continue
        if why := _why_no_path(path):
            yield f"{who}.path={path:.80}: {why}"
            continue
        looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        place = Path(path).expanduser()
        if not place.exists() and (looks_local or offline or not path):
            yield f"{who}.path={path}: there is no such folder"
        elif place.is_file():
            yield f"{who}.path={path}: this is a file; give the folder of the checkpoint"


def _host_problems(config: Any) -> Iterator[str]:
    """Settings of a teacher that lives elsewhere, which are sound each for itself."""
    teacher = config.teacher
    if teacher.host != "served" and teacher.kind == "hf" and teacher.path is None:
        yield f"teacher.path=null: teacher.host={teacher.host} needs the checkpoint's folder"
    if teacher.host == "deepspeed" and teacher.deepspeed.offload == "nvme":
        place = teacher.deepspeed.nvme_path
        if not isinstance(place, str) or _why_no_path(place) or not Path(place).is_dir():
            yield f"teacher.deepspeed.nvme_path={place}: offload=nvme needs a folder on that disk"
    if teacher.host == "served":
        yield from _server_problems(teacher.served)
    if teacher.cache is not None and (why := _why_no_path(teacher.cache)):
        yield f"teacher.cache={teacher.cache:.80}: {why}"
    elif teacher.host == "cached" and teacher.cache is not None and "cache" not in config:
        folder = Path(teacher.cache).expanduser()
        if not any(folder.glob("manifest-*.json")):
            yield (
                f"teacher.cache={folder}: there is no teacher cache; write it first: "
                f"recipe=cache_teacher teacher.cache={folder}"
            )


def _server_problems(served: Any) -> Iterator[str]:
    if why := url_problem(str(served.url)):
        yield f"teacher.served.url={without_secrets(str(served.url))} {why}"
    if not isinstance(served.api_key_env, str | None):
        yield (
            f"teacher.served.api_key_env={served.api_key_env}: the name of an environment variable "
            "is expected, such as OPENAI_API_KEY"
        )


def _together_problems(config: Any) -> Iterator[str]:
    """Settings that are sound each for itself and not together."""
    shares = [config.data.get(f"{part}_share") for part in ("validation", "test")]
    if all(isinstance(share, int | float) for share in shares) and sum(shares) >= 1:
        yield (
            f"data.validation_share={shares[0]} and data.test_share={shares[1]} leave no train "
            "part: try 0.05 and 0.05"
        )
    kind, cut = config.student.kind, config.student.get("layers")
    if kind in ("same", "hf") and cut is not None:
        # a recipe that halves the depth says so after the student was chosen
        yield (
            f"student={kind} is a whole model, but the recipe (or you) set student.layers={cut}: "
            "add student.layers=null, or cut a teacher with student=from_teacher"
        )
    if config.teacher.kind == "embedded":
        hidden, layers = config.teacher.hidden, config.student.get("layers")
        if not isinstance(hidden, int) or hidden < 64 or hidden % 64:
            yield f"teacher.hidden={hidden}: must be a multiple of 64 (two heads of 32 a group)"
        known = config.teacher.layers
        if isinstance(layers, int) and isinstance(known, int) and layers > known:
            yield (f"student.layers={layers}: the teacher has {known} layers (teacher.layers)")


def _wrote_cache(run_dir: Path) -> bool:
    import yaml

    try:
        recorded = yaml.safe_load((run_dir / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(recorded, dict) and "cache" in recorded


def _run_dir_problems(config: Any) -> Iterator[str]:
    for key in ("ckpt", "run_dir"):
        if config[key] is not None and (why := _why_no_path(config[key])):
            yield f"{key}={config[key]:.80}: {why}"
            return
    if config.ckpt not in (None, "last") and not Path(config.ckpt).is_file():
        yield f"ckpt={config.ckpt}: there is no such file (last: run_dir's newest)"
    if config.run_dir is None or rank_here() > 0:  # rank 0 may have begun to write there
        return
    path = Path(config.run_dir)
    holds_run = (path / "config.yaml").exists()
    if holds_run and "cache" in config and _wrote_cache(path):
        return  # a cache of a teacher is gone on with by the very same command
    if not config.run_dir:
        yield "run_dir='': this is no path"
    elif path.exists() and not path.is_dir():
        yield f"run_dir={path}: this is a file"
    elif config.ckpt is None and holds_run:
        yield f"run_dir={path} holds a run already; choose another, or go on with it: ckpt=last"
    elif config.ckpt == "last" and not holds_run:
        yield f"ckpt=last: there is no run at {path} to go on with"
