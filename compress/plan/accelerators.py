"""The dated table of accelerators, and a user's own figures over it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from compress.errors import BadInput, did_you_mean


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
        names: separated by commas, in any case; None takes all.
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
    spelt = {name.lower(): name for name in known}
    asked = [name.strip().lower() for name in names.split(",")]
    unknown = [name for name in asked if name not in spelt]
    if unknown:
        hint = did_you_mean(unknown[0], list(spelt))
        raise BadInput(f"gpu={','.join(unknown)} is unknown.{hint} Known: {', '.join(known)}")
    return {spelt[name]: known[spelt[name]] for name in asked}


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
