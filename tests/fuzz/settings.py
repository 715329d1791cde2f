"""Every setting of every recipe, given what it can't take: one at a time, each key once."""

import contextlib
import io
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.data import text_files
from compress.errors import CompressError
from compress.scripts.lib import build
from compress.scripts.lib.checks import check_paths
from compress.scripts.lib.config import compose, list_recipes
from compress.scripts.lib.rehearsal import rehearse
from tests.data.texts import story_rows, write_lines

BAD = ["null", "x", "''", "-1", "0", "1.5", "1e99", "true", "[]", "[1]", "[[x]]", "{}", "{a: 1}"]
"""For most settings some of these are sound; for none are all."""


def keys(node: Any, where: str = "") -> Iterator[str]:
    """The dotted names of groups and settings, a group before what it holds."""
    for name, value in node.items():
        yield f"{where}{name}"
        if isinstance(value, dict):
            yield from keys(value, f"{where}{name}.")


def cases() -> list[tuple[str, str, str]]:
    """Recipe, key and value; a key that several recipes have stands under the first."""
    from omegaconf import OmegaConf

    owner: dict[str, str] = {}
    for recipe in list_recipes():
        for key in keys(OmegaConf.to_container(compose([f"recipe={recipe}"]))):
            owner.setdefault(key, recipe)
    return [(recipe, key, value) for key, recipe in owner.items() for value in BAD]


class Rehearsals:
    """What a run does before it trains anything, on data that are read once."""

    def __init__(self, folder: Path) -> None:
        """Tokenises a few rows under `folder`."""
        rows = write_lines(folder / "rows.jsonl", story_rows(20))
        self.data = text_files(
            path=rows, vocab_size=280, sequence_length=8, cache_dir=folder / "cache"
        )

    def surprise(self, recipe: str, key: str, value: str) -> str | None:
        """The traceback, where this neither passes nor ends in an error of ours."""
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                config = compose([f"recipe={recipe}", f"{key}={value}"])
                check_paths(config)
                data = self.data_of(config) if key.startswith("data.") else self.data
                rehearse(config, data)
        except CompressError:
            return None
        except Exception:
            return traceback.format_exc()
        return None

    def data_of(self, config: Any) -> Any:
        """The data that this configuration asks for, where they lie on this machine."""
        if "_target_" in config.data and "python_stdlib" in str(config.data["_target_"]):
            config.data.max_bytes = min(config.data.max_bytes or 100_000, 100_000)
        return build.build_data(config, None)
