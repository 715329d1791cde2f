"""Settings held against the typed arguments of the class or function that takes them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word",
         NoneType: "null", dict: "a group of settings", list: "a list"}  # fmt: skip

PATTERNS = ("include", "exclude")
"""Arguments that take several words where they take one."""


def signature_problems(where: str, target: Callable[..., Any], settings: Any) -> Iterator[str]:
    """One line for each setting of a kind that the argument of its name does not take.

    What an argument does not say about its kind is left to whoever reads it.

    >>> def mine(*, steps: int = 3, share: float | None = None): ...
    >>> list(signature_problems("callbacks.mine", mine, {"steps": "x", "share": 1}))
    ["callbacks.mine.steps='x': a whole number is expected"]
    """
    hints = _hints(target)
    for name, value in settings.items():
        several = name in PATTERNS and isinstance(value, list)
        if name in hints and not (_fits(value, list[str] if several else hints[name])):
            expected = " or ".join(dict.fromkeys(_words(hints[name])))
            yield f"{where}.{name}={value!r:.80}: {expected} is expected"


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if isinstance(target, type) else target)
    except (NameError, TypeError, AttributeError):  # names that exist for type checkers alone
        return {}


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if kind is float:
        return _is_number(value) and math.isfinite(value)
    if kind in (int, bool, str, NoneType):
        return type(value) is kind
    if not isinstance(kind, type):
        return True
    if issubclass(kind, Mapping):
        return isinstance(value, dict) and _all_fit(value.values(), get_args(hint)[1:])
    if issubclass(kind, Iterable):
        return isinstance(value, list) and _all_fit(value, get_args(hint)[:1])
    return True  # a class of its own: nothing that a recipe could hold


def _all_fit(values: Iterable[Any], hints: tuple[Any, ...]) -> bool:
    return not hints or all(_fits(value, hints[0]) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(hint: Any) -> Iterator[str]:
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        for one in get_args(hint):
            yield from _words(one)
    elif kind in WORDS:
        yield WORDS[kind]
    elif isinstance(kind, type) and issubclass(kind, Mapping):
        yield WORDS[dict]
    else:
        yield WORDS[list]
