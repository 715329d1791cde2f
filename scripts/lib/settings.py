"""Flat `key=value` settings of one script over the defaults of its recipe file; nothing heavy."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.errors import BadInput, did_you_mean
from compress.scripts.lib.config import recipes_folder

WHOLE_OR_NULL = ("group_size", "length", "batch")
"""Settings whose default of null stands for a number."""

MAY_BE_NULL = ("qat",)
"""Settings of another default that null switches off."""


def program(
    words: list[str] | None, *, usage: str, run: Callable[[list[str]], Any], stopped: str = ""
) -> int:
    """What every script around its work does: help, our errors in a line, the exit status.

    Args:
        words: of the command line; None reads them there.
        usage: printed for `--help`, and where nothing is said.
        run: the work; what it answers is dropped.
        stopped: what to say after Ctrl-C.

    Returns:
        0 done, 2 bad input, 130 interrupted.
    """
    from compress.errors import CompressError

    words = sys.argv[1:] if words is None else words
    if not words or any(word in ("-h", "--help") for word in words):
        print(usage)
        return 0 if words else 2
    try:
        run(words)
        return 0
    except CompressError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Stopped. {stopped}".strip(), file=sys.stderr)
        return 130


def read_settings(
    words: list[str], *, name: str, required: tuple[str, ...] = ("model",)
) -> dict[str, Any]:
    """The defaults of `recipes/<name>.yaml` with these words over them.

    Raises:
        BadInput: every problem found: no key=value, an unknown key, a value of another kind, or a
            file that does not exist.
    """
    import yaml

    defaults: dict[str, Any] = yaml.safe_load((recipes_folder() / f"{name}.yaml").read_text())
    settings, problems = dict(defaults), []
    for word in words:
        key, found, text = word.partition("=")
        if not found:
            problems.append(f"{word!r} is no key=value")
        elif key not in defaults:
            hint = did_you_mean(key, list(defaults))
            problems.append(f"{key}: there is no such setting.{hint} Known: {', '.join(defaults)}")
        else:
            settings[key], problem = _value(key, text, defaults[key])
            problems += [problem] if problem else []
    problems += [f"{k} must be given: {k}=PATH" for k in required if settings[k] is None]
    if problems:
        raise BadInput("\n".join(problems))
    return settings


def _value(key: str, text: str, default: Any) -> tuple[Any, str | None]:
    """The value in the kind of the default, and what is wrong with it."""
    import yaml

    from compress.scripts.lib.kinds import value_problem

    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = text
    nothing = value is None and text in ("", "null", "~")
    if default is None and key in WHOLE_OR_NULL:
        whole = nothing or (isinstance(value, int) and not isinstance(value, bool))
        return value, None if whole else f"{key}={text}: a whole number or null is expected"
    if default is None:
        # paths and names stay as they were typed, also where YAML would see a number or a list
        return None if nothing else at_home(text), None
    if nothing and key in MAY_BE_NULL:
        return None, None
    if nothing:
        return value, f"{key}={text}: a value is expected, as {_typed(default)}"
    if isinstance(default, list) and not isinstance(value, list):
        try:
            value = [yaml.safe_load(part) for part in text.split(",")]
        except yaml.YAMLError:
            expected = value_problem(text, default)
            return value, f"{key}={text}: {expected} is expected; a bracket or a quote is left open"
    if isinstance(default, list) and default and isinstance(default[0], str):
        value = [one if isinstance(one, list | dict) else str(one) for one in value]
    if isinstance(default, str):
        return at_home(text), None
    if isinstance(default, dict) and not isinstance(value, dict):
        return value, f"{key}={text}: expected {{name: value}}"
    problem = None if default == [] else value_problem(value, default)
    return value, f"{key}={text}: {problem} is expected" if problem else None


def at_home(text: str) -> str:
    """A path under `~` as one from the root: shells leave it alone after an `=`."""
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:  # no such home: told as a path that is not there
        return text


def _typed(default: Any) -> str:
    """A value as one would type it."""
    shown = str(default).replace("'", "").replace(" ", "")
    return shown.lower() if isinstance(default, bool) else shown


def out_of_limits(settings: Mapping[str, Any], limits: Mapping[str, Any]) -> list[str]:
    """One line for each number, or number of a list, outside its limits; null is inside."""
    problems = []
    for key, allowed in limits.items():
        value = settings[key]
        values = value if isinstance(value, list) else [] if value is None else [value]
        if any(one not in allowed for one in values):
            problems.append(f"{key}={value}: must be {allowed}")
    return problems


def unknown_words(
    settings: Mapping[str, Any], words: Mapping[str, tuple[str | None, ...]]
) -> list[str]:
    """One line for each setting that is none of its words."""
    problems = []
    for key, known in words.items():
        if settings[key] not in known:
            listed = ", ".join("null" if word is None else word for word in known)
            hint = did_you_mean(str(settings[key]), [word for word in known if word])
            problems.append(f"{key}={settings[key]} is unknown.{hint} There are: {listed}")
    return problems


def check_model_path(key: str, path: str | None, *, remote: bool = True) -> list[str]:
    """What is wrong with a model's path, before anything heavy is imported.

    Args:
        key: the setting's name.
        path: a folder or file; with `remote` also a name on the hub (`owner/name`).
        remote: whether a name on the hub will do.
    """
    if path is None:
        return []
    try:
        if Path(path).expanduser().exists():
            return []
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no such home
        return [f"{key}={path:.80}: this is no path to use ({error})"]
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local or not remote:
        return [f"{key}={path}: there is no such file or folder"]
    return []


def check_file(key: str, path: str | None) -> list[str]:
    """What is wrong with a file that will be read."""
    problems = check_model_path(key, path, remote=False)
    if problems or path is None or not Path(path).is_dir():
        return problems
    return [f"{key}={path}: this is a folder; name a file in it"]


def check_device(device: str) -> list[str]:
    """What is wrong with a device; imports torch where a GPU is asked for alone."""
    if device == "cpu":
        return []
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        return [f"device={device} is unknown. There are: cpu, cuda, cuda:0, ..."]
    import torch

    found = torch.cuda.device_count()
    if int(number or 0) < found:
        return []
    return [f"device={device}: torch finds {found} GPUs here; use device=cpu"]


def check_writable(key: str, path: str | None) -> list[str]:
    """What is wrong with a path that will be written."""
    if path is None:
        return []
    place = Path(path).expanduser().absolute()
    if place.is_dir():
        return [f"{key}={path}: this is a folder; name a file in it"]
    if not place.parent.is_dir():
        return [f"{key}={path}: there is no folder {place.parent}"]
    return [] if os.access(place.parent, os.W_OK) else [f"{key}={path}: no right to write there"]


def check_installed(module: str, setting: str, command: str) -> list[str]:
    """What is wrong where `setting` needs a module that is not installed; imports nothing."""
    from importlib.util import find_spec

    if find_spec(module) is not None:
        return []
    return [f"{setting} needs {module}, which is not installed: {command}"]
