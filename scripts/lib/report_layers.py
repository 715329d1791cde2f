"""Bits, density and error of each layer: heat maps, the table, and what is equal everywhere."""

import re
from collections.abc import Mapping
from typing import Any

from compress.scripts.lib.report_data import MISSING, finite, number, records
from compress.scripts.lib.report_plots import heat_map

QUANTITIES = {
    "density": "Density: share of weights kept",
    "bits": "Bits a weight",
    "error": "Relative error of quantisation",
}
MOST_ROWS = 400


def layers_of(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The layers' part of a page; None where no layer was recorded."""
    layers = [layer for layer in records(report.get("layers")) if "name" in layer]
    if not layers:
        return None
    figures, alike = [], []
    for quantity, title in QUANTITIES.items():
        known = [v for layer in layers if (v := finite(layer.get(quantity))) is not None]
        if known and min(known) == max(known):
            alike.append(f"{quantity} {number(known[0])}")
        elif known:
            figures.append(_figure(layers, quantity, title))
    text = f"{len(layers)} layers are compressed."
    if alike:
        text += f" The same in all that have it: {', '.join(alike)}."
    return {"text": text, "figures": figures, "table": _table(layers)}


def _figure(layers: list[dict[str, Any]], quantity: str, title: str) -> dict[str, Any]:
    cells = cells_of(layers, quantity)
    alt = f"Heat map, layers down and kinds of projection across. {title}."
    svg = heat_map(cells, key=f"layers-{quantity}", alt=alt, title=title)
    averaged = any("*" in column for _, column in cells)
    note = "; experts (*) are averaged" if averaged else ""
    from markupsafe import Markup

    return {"svg": Markup(svg or ""), "caption": f"{title}{note}. The figures stand below."}


def cells_of(layers: list[dict[str, Any]], quantity: str) -> dict[tuple[str, str], float]:
    """(layer, kind) -> mean of a quantity; further numbers in a name are averaged over.

    >>> cells_of([{"name": "model.layers.3.mlp.up_proj", "bits": 4}], "bits")
    {('3', 'up_proj'): 4.0}
    """
    sums: dict[tuple[str, str], list[float]] = {}
    for layer in layers:
        value = finite(layer.get(quantity))
        if value is not None:
            sums.setdefault(_place(str(layer["name"])), []).append(value)
    short = _short_names({kind for _, kind in sums})
    return {(row, short[kind]): sum(v) / len(v) for (row, kind), v in sums.items()}


def _place(name: str) -> tuple[str, str]:
    match = re.match(r"(?:.*?\.)?(\d+)\.(.+)", name)
    if match is None:
        return "other", name
    return match[1], re.sub(r"(?<=\.)\d+(?=\.|$)", "*", match[2])


def _short_names(kinds: set[str]) -> dict[str, str]:
    """The last component where it tells the kinds apart, else the whole kind."""
    last = {kind: kind.rpartition(".")[2] for kind in kinds}
    counts = list(last.values())
    return {k: v if counts.count(v) == 1 and "*" not in k else k[-28:] for k, v in last.items()}


def _table(layers: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [
        {"kind": "", "cells": [str(layer["name"]), *(number(layer.get(q), 3) for q in QUANTITIES)]}
        for layer in layers[:MOST_ROWS]
    ]
    if len(layers) > MOST_ROWS:
        more = f"{len(layers) - MOST_ROWS} more in report.json"
        rows.append({"kind": "", "cells": [more, MISSING, MISSING, MISSING]})
    head = ["layer", *QUANTITIES]
    return {"caption": "Layers", "head": head, "rows": rows, "numbers": True}
