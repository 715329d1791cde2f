"""What moved while training: masks and widths at each update, as curves."""

from collections.abc import Mapping
from typing import Any

from compress.scripts.lib.report_data import Points, finite, records
from compress.scripts.lib.report_plots import loss_curves

CAPTIONS = {
    "sparsity": "Masks at each update: density is the share kept, churn the share exchanged.",
    "pruning": "Widths that are kept, at each update.",
}
UNITS = {"sparsity": "share", "pruning": "kept"}


def history_of(report: Mapping[str, Any], section: str) -> dict[str, Points]:
    """Curves of a section's `history`; what never changes and what counts layers is left out.

    >>> moves = [{"step": 0, "density": 1.0, "dead": 0}, {"step": 5, "density": 0.5, "dead": 0}]
    >>> history_of({"sparsity": {"history": moves}}, "sparsity")
    {'density': [(0.0, 1.0), (5.0, 0.5)]}
    """
    part = report.get(section)
    moves = records(part.get("history")) if isinstance(part, Mapping) else []
    curves: dict[str, Points] = {}
    for move in moves:
        step = finite(move.get("step"))
        for name, raw in move.items():
            value = finite(raw)
            if name != "step" and step is not None and value is not None:
                curves.setdefault(str(name), []).append((step, value))
    return {name: p for name, p in curves.items() if len({value for _, value in p}) > 1}


def history_figures(report: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    """One plot of a section's history; none where nothing moved."""
    from compress.scripts.lib.html_report import figure

    kind = next((known for known in CAPTIONS if section.startswith(known)), None)
    curves = history_of(report, section) if kind else {}
    if kind is None or not curves:
        return []
    alt = f"Line plot: {CAPTIONS[kind]} Lines: {', '.join(curves)}."
    svg = loss_curves(curves, key=f"history-{section}", alt=alt, ylabel=UNITS[kind])
    return [figure(svg, CAPTIONS[kind])] if svg else []
