"""The dated table of accelerators, and a user's own figures over it."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from compress.errors import BadInput, did_you_mean

LEAST = {"memory_gb": 1e-3, "bandwidth_gb_s": 1e-3, "link_gb_s": 0, "devices_per_node": 1}
FORMATS = {"bf16", "int8", "int4", "fp8", "fp4"}


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One device, by its vendor's figures.

    Args:
        name: its word on the command line.
        memory_gb: in 10^9 bytes, all of it; runtimes leave some free (see `fit.USABLE`).
        bandwidth_gb_s: of that memory.
        tflops: dense, by number format.
        formats: what its matrix units or kernels take; `int4` stands for packed weights.
        link_gb_s: to the other devices of its node, both directions together.
        devices_per_node: in the usual server.
        mig: profile -> memory in GB; empty where the device cannot be split.
        source: where the figures are from.
    """

    name: str
    vendor: str
    memory_gb: float
    bandwidth_gb_s: float
    tflops: Mapping[str, float]
    formats: tuple[str, ...]
    link_gb_s: float
    devices_per_node: int
    source: str
    mig: Mapping[str, float] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.memory_gb * 1e9)


@cache
def table() -> tuple[str, dict[str, Accelerator]]:
    """The date of the figures, and every accelerator by name."""
    read = json.loads(files("compress.plan").joinpath("accelerators.json").read_text())
    return read["as_of"], {k: _accelerator(k, v) for k, v in read["accelerators"].items()}


def accelerators(
    names: str | None = None, *, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Accelerator]:
    """The accelerators asked for.

    Args:
        names: separated by commas, in any case, with or without spaces; None takes all.
        overrides: name -> figures that replace the table's, or a device of your own with all.

    Raises:
        BadInput: an unknown name or figure.

    >>> accelerators("h100", overrides={"H100": {"memory_gb": 94}})["H100"].memory_gb
    94
    """
    known = dict(table()[1])
    for name, figures in (overrides or {}).items():
        known[name] = _overridden(name, figures, known)
    if names is None:
        return known
    spelt = {_plain(name): name for name in known}
    asked = [name.strip() for name in names.split(",")]
    unknown = [name for name in asked if _plain(name) not in spelt]
    if unknown:
        hints = "".join(f"\n  {name or 'nothing'}:{_nearest(name, spelt)}" for name in unknown)
        raise BadInput(
            f"gpu={names}: unknown accelerators:{hints}\nKnown: {', '.join(known)}. "
            "Figures of your own: scripts/plan.py accelerators=FILE.json"
        )
    return {spelt[_plain(name)]: known[spelt[_plain(name)]] for name in asked}


def _plain(name: str) -> str:
    """A name without its case and punctuation: `Gaudi 2` is `Gaudi2`."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _nearest(name: str, spelt: Mapping[str, str]) -> str:
    near = get_close_matches(_plain(name), list(spelt), n=1, cutoff=0.5)  # short names: L5
    # a maker's longer name holds the word of the table
    near = near or [plain for plain in spelt if plain in _plain(name)][:1]
    return f" Did you mean {spelt[near[0]]!r}?" if near else " nothing here is called so"


def read_overrides(path: str | Path) -> dict[str, dict[str, Any]]:
    """A user's figures: a JSON file of name -> figures, as in accelerators.json.

    Raises:
        BadInput: there is no such file, or it is no such JSON.
    """
    try:
        read = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"accelerators={path} cannot be read: {error}") from error
    found = read.get("accelerators", read) if isinstance(read, dict) else None
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise BadInput(f'accelerators={path}: expected {{"NAME": {{"memory_gb": 80}}}}')
    return found


def _overridden(
    name: str, figures: Mapping[str, Any], known: Mapping[str, Accelerator]
) -> Accelerator:
    allowed = {f.name for f in fields(Accelerator)} - {"name"}
    if wrong := sorted(set(figures) - allowed):
        hint = did_you_mean(wrong[0], sorted(allowed))
        raise BadInput(f"{name}: unknown figures {', '.join(wrong)}.{hint}")
    if problems := list(_wrong_figures(figures)):
        raise BadInput(f"accelerators: {name}: " + "; ".join(problems))
    if name in known:
        return replace(known[name], source=f"{known[name].source}; overridden", **figures)
    missing = sorted(
        f for f in ("memory_gb", "bandwidth_gb_s", "tflops", "formats") if f not in figures
    )
    if missing:
        raise BadInput(f"{name} is not in the table: give its {', '.join(missing)} too")
    spare = {"vendor": "", "link_gb_s": 0.0, "devices_per_node": 1, "source": "given by the user"}
    return _accelerator(name, {**spare, **figures})


def _accelerator(name: str, figures: Mapping[str, Any]) -> Accelerator:
    return Accelerator(name=name, **{**figures, "formats": tuple(figures["formats"])})


def _wrong_figures(figures: Mapping[str, Any]) -> Iterator[str]:
    """What cannot be counted with; nothing that is missing."""
    for key, least in LEAST.items():
        if key in figures and not _is_number(figures[key], least):
            yield f"{key}={figures[key]!r} must be a number, at least {least:g}"
    speeds, slices = figures.get("tflops", {"bf16": 1}), figures.get("mig", {})
    if not isinstance(speeds, dict) or not all(_is_number(v, 1e-3) for v in speeds.values()):
        yield f'tflops={speeds!r}: expected number format -> number, such as {{"bf16": 100}}'
    elif "bf16" not in speeds:
        yield "tflops must give bf16, which whatever has no kernels of its own runs in"
    formats = figures.get("formats", [])
    if not isinstance(formats, list | tuple) or not set(map(str, formats)) <= FORMATS:
        yield f"formats={formats!r}: expected a list of {', '.join(sorted(FORMATS))}"
    if not isinstance(slices, dict) or not all(
        re.fullmatch(r"[1-7]g\.\d+gb", k) and _is_number(v, 1e-3) for k, v in slices.items()
    ):
        yield f'mig={slices!r}: expected profile -> GB, such as {{"1g.10gb": 10}}'


def _is_number(value: Any, least: float) -> bool:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return usable and math.isfinite(value) and value >= least
