"""What a recipe may name in `_target_`, and how the name becomes a class: a recipe runs no shell.

Two walls. `check_targets` looks at the names alone, before anything is imported. `import_target`
looks at what was found: a name such as `compress.data.store.os.system` passes for one of ours and
is none. What only the user may switch (`allow_modules`, `trust_remote_code`, `api_key_env`) must
stand on the command line: a recipe that could switch it would be its own judge.
"""

import importlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from compress.errors import BadInput, did_you_mean
from compress.teachers.http_json import is_local, without_secrets

ALLOWED_PACKAGES = ("compress", "lightning", "torch", "torchmetrics", "transformers")
DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)
ONLY_BY_COMMAND_LINE = {"allow_modules": [], "trust_remote_code": False, "api_key_env": None}
"""Switches, each with what it is where nobody touched it."""

WHAT_THEY_DO = {
    "allow_modules": "lets foreign code run",
    "trust_remote_code": "lets foreign code run",
    "api_key_env": "sends a key of yours away",
}


def check_targets(node: Any, allow_modules: Sequence[str], where: str = "") -> None:
    """Refuse each `_target_` that does not lie in an allowed package, however deep it stands.

    Raises:
        BadInput: lists every offender.
    """
    problems = [
        f"{place}={target!r} is not allowed to run"
        for place, target in _targets_in(node, where)
        if not _is_allowed(target, allow_modules)
    ]
    if problems:
        raise BadInput(
            "\n".join(problems)
            + f"\nAllowed are {', '.join(ALLOWED_PACKAGES)}; where you trust another module, say "
            "so on the command line: allow_modules=[its_package]"
        )


def _targets_in(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    children: Any = ()
    if isinstance(node, dict):
        if "_target_" in node:
            yield f"{where}._target_".lstrip("."), node["_target_"]
        children = ((f"{where}.{key}".lstrip("."), value) for key, value in node.items())
    elif isinstance(node, list):
        children = ((f"{where}[{index}]", value) for index, value in enumerate(node))
    for place, value in children:
        yield from _targets_in(value, place)


def _is_allowed(target: Any, allow_modules: Sequence[str]) -> bool:
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        return False  # also "_private" parts: `torch._C`, `package.__main__`
    return _lies_in(target, (*ALLOWED_PACKAGES, *allow_modules))


def _lies_in(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def check_switches(config: Any, words: Sequence[str]) -> None:
    """Refuse a recipe that switches on by itself what only the user may.

    Raises:
        BadInput: lists every such setting and how to give it.
    """
    said = {word.lstrip("+").partition("=")[0] for word in words}
    problems = [
        f"{place}={value} stands in a recipe file; it {WHAT_THEY_DO[place.rpartition('.')[2]]}, so "
        f"it counts only on the command line: {place}={value}"
        for place, value in _switches_in(config, "")
        if place not in said
    ]
    problems += [
        f"{place}={without_secrets(url)} stands in a recipe file, and the key in {name} would be "
        f"sent there; where that is what you want, say the address too: {place}=..."
        for place, url, name in _servers_in(config, "")
        if place not in said and not is_local(url)
    ]
    if problems:
        raise BadInput("\n".join(problems))


def check_run(config: Any, *, file: Any, allow_modules: Sequence[str], trusted: bool) -> None:
    """Refuse a run folder's configuration that asks for trust which the command line does not give.

    A key for a server is no matter here: nothing is asked of a teacher once a run is over.

    Args:
        config: plain data, as the run's own file says it.
        file: that file, for the message.
        allow_modules: what the command line allows.
        trusted: whether it lets the code beside a checkpoint run.

    Raises:
        BadInput: lists every such setting with the word that allows it, and each `_target_` that
            is not allowed.
    """
    problems = []
    for place, value in _switches_in(config, ""):
        key = place.rpartition(".")[2]
        given = {
            "allow_modules": _all_allowed(value, allow_modules),
            "trust_remote_code": trusted, "api_key_env": True,
        }[key]  # fmt: skip
        if not given:
            problems.append(
                f"{file}: {place}={value} {WHAT_THEY_DO[key]}, and a run folder does not decide "
                f"that; where you trust this run, say so on the command line: {_word(key, value)}"
            )
    if problems:
        raise BadInput("\n".join(problems))
    check_targets(config, allow_modules)


def _all_allowed(names: Any, allow_modules: Sequence[str]) -> bool:
    return isinstance(names, list) and all(_lies_in(str(name), allow_modules) for name in names)


def _word(key: str, value: Any) -> str:
    if key == "trust_remote_code":
        return f"{key}=true"
    return f"{key}=[{','.join(map(str, value if isinstance(value, list) else [value]))}]"


def _switches_in(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            place = f"{where}.{key}".lstrip(".")
            if key in ONLY_BY_COMMAND_LINE and value != ONLY_BY_COMMAND_LINE[key]:
                yield place, value
            yield from _switches_in(value, place)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _switches_in(value, f"{where}[{index}]")


def _servers_in(node: Any, where: str) -> Iterator[tuple[str, str, str]]:
    """The addresses that get a key, each with the name of its variable."""
    if isinstance(node, dict):
        if node.get("api_key_env") is not None and "url" in node:
            yield f"{where}.url".lstrip("."), str(node["url"]), str(node["api_key_env"])
        for key, value in node.items():
            yield from _servers_in(value, f"{where}.{key}".lstrip("."))


def check_resolved(node: Any, *, whose: str) -> None:
    """Refuse texts that still hold `${`: whoever reads them next would resolve them once more.

    Args:
        node: plain data, resolved.
        whose: file or configuration that it is, for the message.

    Raises:
        BadInput: lists every such text.

    >>> check_resolved({"run_dir": "runs/a", "cost": "$5"}, whose="the configuration")
    """
    problems = [f"{place}={text!r:.200}" for place, text in _texts_in(node, "") if "${" in text]
    if problems:
        raise BadInput(
            "\n".join(problems)
            + f"\n{whose} holds ${{...}} in a text that was read already; read once more, it could "
            "name an environment variable: write the value itself"
        )


def _texts_in(node: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield where, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _texts_in(value, f"{where}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _texts_in(value, f"{where}[{index}]")


def import_callback(target: str, allow_modules: Sequence[str] = ()) -> Any:
    """The Lightning callback class of this name.

    Raises:
        BadInput: there is none, or it is something else.
    """
    from lightning.pytorch import Callback

    found = import_target(target, allow_modules)
    if not (isinstance(found, type) and issubclass(found, Callback)):
        raise BadInput(f"{target} is no Lightning callback but {_words(found)}")
    return found


def import_data(target: str, allow_modules: Sequence[str] = ()) -> Any:
    """The data function of this name: one of ours, or of a module that the user trusts.

    Raises:
        BadInput: there is none, or it is something else.
    """
    import compress.data

    known = [f"compress.data.{name}" for name in compress.data.__all__]
    if target not in known and not _lies_in(target, allow_modules):
        raise BadInput(f"data._target_={target!r} is no data source.{did_you_mean(target, known)}")
    found = import_target(target, allow_modules)
    if not callable(found):
        raise BadInput(f"{target} cannot be called: it is {_words(found)}")
    return found


def import_target(target: str, allow_modules: Sequence[str] = ()) -> Any:
    """The class or function that stands in a module under its own name.

    Raises:
        BadInput: the name is not allowed, does not exist, or leads out of the allowed packages.
    """
    check_targets({"_target_": target}, allow_modules)
    place, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        raise BadInput(f"_target_={target}: cannot import {place} ({error})") from error
    if not hasattr(module, name):
        known = [word for word in dir(module) if not word.startswith("_")]
        raise BadInput(f"_target_={target}: {place} has no {name!r}.{did_you_mean(name, known)}")
    found = getattr(module, name)
    home = str(getattr(found, "__module__", ""))
    if not _lies_in(home, (*ALLOWED_PACKAGES, *allow_modules)):
        raise BadInput(f"_target_={target} is not allowed to run: it is {_words(found)}")
    return found


def _words(found: Any) -> str:
    home = getattr(found, "__module__", None)
    name = getattr(found, "__qualname__", repr(found))
    return f"{home}.{name}" if home else str(name)
