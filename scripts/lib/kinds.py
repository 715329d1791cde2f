"""Keys and kinds of a configuration, held against the recipe files and their defaults.

Imports nothing heavy: a misspelt key or a word where a number belongs is told within a second.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from compress.errors import BadInput, did_you_mean

OF_MANY_KINDS = ("devices",)
"""Settings whose default is a number, but which take words or lists too."""

PATHS = ("run_dir", "ckpt", "path", "validation_path", "roots", "cache", "target")
"""Settings that are words where they are not null, whatever their default; of data, lists too."""


def check_keys(words: Sequence[str], defaults: Any) -> None:
    """Refuse `key=value` words whose key stands in no recipe file.

    Raises:
        BadInput: one line for each, with the nearest known key.
    """
    problems = [p for w in words if (p := _key_problem(w.partition("=")[0], defaults))]
    if problems:
        raise BadInput("\n".join(problems))


def _key_problem(key: str, defaults: Any) -> str | None:
    node, walked = defaults, ""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            known = [str(k) for k in node] if isinstance(node, dict) else []
            place = f"{walked.rstrip('.')} has no setting" if walked else "there is no setting"
            listed = ", ".join(k for k in known if not k.startswith("_"))
            return (
                f"{key}: {place} {part!r}.{did_you_mean(part, known)} "
                f"Known: {listed or 'nothing (no such callback?)'}"
            )
        if node.get("_target_") and isinstance(node[part], dict):
            return None  # a dict that a callback takes: its keys are the user's
        node, walked = node[part], f"{walked}{part}."
    return None


def check_top(config: Any, known: Any) -> None:
    """Refuse new keys at the top, which `+key=value` would let in unread, and those taken out.

    Raises:
        BadInput: one line for each.
    """
    new = [str(key) for key in config if key not in known]
    problems = [f"{k}: there is no setting {k!r}.{did_you_mean(k, list(known))}" for k in new]
    gone = [str(key) for key in known if key not in config]
    problems += [f"~{k}: a run needs {k!r}; choose another instead: {k}=..." for k in gone]
    if problems:
        raise BadInput("\n".join(problems))


def check_kinds(config: Any, defaults: Any) -> None:
    """Refuse values of another kind than their default.

    A default of null takes anything; null is left to whoever reads the setting.

    Raises:
        BadInput: one line for each.
    """
    problems = list(_kind_problems(config, defaults, ""))
    if problems:
        raise BadInput("\n".join(problems))


def _kind_problems(node: Any, defaults: Any, where: str) -> Iterator[str]:
    for key, default in defaults.items():
        place = f"{where}{key}"
        lists, groups = where == "data.", place == "cache"
        if key in PATHS and not _is_word(node.get(key), lists=lists, groups=groups):
            yield f"{place}={node[key]!r}: a word is expected (in quotes, where it is a number)"
        if key not in node or default is None or key in OF_MANY_KINDS:
            continue
        if node[key] is None and not (isinstance(default, dict | list) and _is_ours(where)):
            continue
        expected = value_problem(node[key], default)
        if expected:
            yield f"{place}={node[key]!r}: {expected} is expected"
        elif isinstance(default, dict):
            yield from _kind_problems(node[key], default, f"{place}.")


def _is_ours(where: str) -> bool:
    """Not a callback's: some of these take null for a group or a list."""
    return not where.startswith("callbacks.")


def _is_word(value: Any, *, lists: bool, groups: bool) -> bool:
    # a missing value is judged elsewhere
    kinds = (str, type(None), *((list,) if lists else ()), *((dict,) if groups else ()))
    return isinstance(value, kinds)


def value_problem(value: Any, default: Any) -> str | None:
    """What is expected where a value is of another kind than its default; None where it is not."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int | float):
        return _expected_number(value, default)
    if isinstance(default, dict):
        return None if isinstance(value, dict) else "a group of settings"
    if isinstance(default, list):
        return _expected_list(value, default)
    return "a word" if isinstance(value, dict | bool) else None


def _expected_list(value: Any, default: list[Any]) -> str | None:
    numbers = bool(default) and not isinstance(default[0], str)
    if not isinstance(value, list):
        return "a list, such as [1,16]," if numbers else "a list, such as [a,b],"
    if numbers:
        return next((said for one in value if (said := _expected_number(one, default[0]))), None)
    words = all(isinstance(one, str) for one in value)
    return None if words else "a list of words (in quotes, where they are numbers)"


def _expected_number(value: Any, default: float) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"a number (such as {default})"
    if not math.isfinite(value):
        return "a finite number"
    if isinstance(default, int) and not isinstance(value, int):
        return f"a whole number (such as {default})"
    return None


def check_callback_settings(callbacks: Any, folder: Path) -> None:
    """Refuse settings that a callback's recipe file does not know, and nodes that are no callback.

    Raises:
        BadInput: one line for each.
    """
    known = _settings_by_target(folder)
    problems = []
    for name, settings in callbacks.items():
        if not isinstance(settings, dict) or not isinstance(settings.get("_target_"), str):
            problems.append(f"callbacks.{name}={settings!r}: no callback, it has no _target_")
            continue
        wanted = known.get(settings["_target_"])
        for key in settings if wanted else ():
            if key not in wanted:
                problems.append(
                    f"callbacks.{name}.{key}: {settings['_target_']} has no setting {key!r}."
                    f"{did_you_mean(str(key), list(wanted))}"
                )
    if problems:
        raise BadInput("\n".join(problems))


@cache
def _settings_by_target(folder: Path) -> dict[str, list[str]]:
    import yaml

    found = (yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml")))
    return {node["_target_"]: list(node) for node in found if isinstance(node, dict)}
