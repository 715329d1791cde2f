"""Flat `key=value` settings of one script over the defaults of its recipe file; nothing heavy."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.errors import BadInput, did_you_mean
from compress.scripts.lib.config import recipes_folder


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

    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = text
    if default is None or value is None:
        # paths and names stay as they were typed, also where YAML would see a number
        return (text if isinstance(value, int | float) and default is None else value), None
    if isinstance(default, list):
        return (value if isinstance(value, list) else str(text).split(",")), None
    if isinstance(default, dict):
        bad = not isinstance(value, dict)
        return value, f"{key}={text}: expected {{name: value}}" if bad else None
    if isinstance(default, bool):
        bad = not isinstance(value, bool)
        return value, f"{key}={text}: true or false is expected" if bad else None
    if isinstance(default, int | float):
        bad = isinstance(value, bool) or not isinstance(value, int | float)
        return value, f"{key}={text}: a number is expected, as {default}" if bad else None
    return str(value), None


def check_model_path(key: str, path: str | None, *, remote: bool = True) -> list[str]:
    """What is wrong with a model's path, before anything heavy is imported.

    Args:
        key: the setting's name.
        path: a folder or file; with `remote` also a name on the hub (`owner/name`).
        remote: whether a name on the hub will do.
    """
    if path is None or Path(path).expanduser().exists():
        return []
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local or not remote:
        return [f"{key}={path}: there is no such file or folder"]
    return []


def check_writable(key: str, path: str | None) -> list[str]:
    """What is wrong with a path that will be written."""
    if path is None:
        return []
    folder = Path(path).expanduser().absolute().parent
    return [] if folder.is_dir() else [f"{key}={path}: there is no folder {folder}"]


def check_installed(module: str, setting: str, command: str) -> list[str]:
    """What is wrong where `setting` needs a module that is not installed; imports nothing."""
    from importlib.util import find_spec

    if find_spec(module) is not None:
        return []
    return [f"{setting} needs {module}, which is not installed: {command}"]
