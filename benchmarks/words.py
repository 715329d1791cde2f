"""Settings of a benchmark from `key=value` words: the fields of its dataclass, in their kinds."""

import sys
from dataclasses import fields
from typing import Any

TRUTH = {"true": True, "false": False}


def read(settings: type[Any], words: list[str]) -> Any:
    """The dataclass with these words over its defaults; an unknown key stops the program."""
    kinds = {f.name: type(f.default) for f in fields(settings)}
    given = dict(word.split("=", 1) for word in words)
    if unknown := given.keys() - kinds.keys():
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(kinds)}")
    return settings(**{k: TRUTH[v] if kinds[k] is bool else kinds[k](v) for k, v in given.items()})
