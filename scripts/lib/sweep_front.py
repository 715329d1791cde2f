"""What a sweep found: its points, those that no other point beats, as table, plot, page and JSON."""  # noqa: E501

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.errors import BadInput
from compress.scripts.lib.report_data import (
    bytes_text,
    duration,
    finite,
    loss_text,
    number,
    pick,
    read_report,
    records,
    times,
    words,
)
from compress.scripts.lib.run_folder import write_json
from compress.scripts.lib.sweep_definition import Sweep
from compress.scripts.lib.sweep_study import finished_trials
from compress.scripts.lib.sweep_trials import command_of

STATES = {"pruned": "stopped early"}
"""In words: a trial that Optuna calls pruned is no pruned model."""

MEASURES = ("quality", "bytes", "latency")


def pareto(points: Sequence[dict[str, Any]], measures: Sequence[str]) -> list[int]:
    """Indices of the points that no other beats in every measure; smaller is better.

    A point that lacks a measure is on no front. Of equal points all stay.

    >>> pareto([{"x": 1, "y": 2}, {"x": 2, "y": 1}, {"x": 2, "y": 3}], ["x", "y"])
    [0, 1]
    """
    known = {
        i: [p[m] for m in measures]
        for i, p in enumerate(points)
        if all(p.get(m) is not None for m in measures)
    }
    return [i for i, mine in known.items() if not any(_beats(o, mine) for o in known.values())]


def _beats(one: list[float], other: list[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def points_of(study: Any, sweep: Sweep, folder: Path) -> list[dict[str, Any]]:
    """One plain record a trial that ended, failed and pruned ones included."""
    return [_point(trial, sweep, folder) for trial in finished_trials(study)]


def _point(trial: Any, sweep: Sweep, folder: Path) -> dict[str, Any]:
    name = trial.user_attrs.get("folder", f"trial_{trial.number:03d}")
    try:
        report = read_report(folder / name)
    except BadInput:
        report = {}
    complete = trial.state.name == "COMPLETE"
    loss = finite(pick(report, "quality.compressed")) if complete else None
    return {
        "trial": name, "state": trial.state.name.lower(), "parameters": dict(trial.params),
        "metric": trial.value if complete else None, "quality": loss,
        "bytes": finite(pick(report, "size.compressed_bytes")) if complete else None,
        "ratio": finite(pick(report, "size.ratio")) if complete else None,
        "latency": _latency(report) if complete else None,
        "seconds": finite(pick(report, "seconds.train")),
        "error": trial.user_attrs.get("error"),
        "command": command_of(trial.user_attrs.get("words", []), sweep.program),
    }  # fmt: skip


def _latency(report: dict[str, Any]) -> float | None:
    """Latency over the baseline's, where the run was benchmarked."""
    arms = [a for a in records(report.get("speed")) if a.get("name") not in ("plain", "naive")]
    return finite(arms[-1].get("ratio")) if arms else None


def write_front(study: Any, sweep: Sweep, folder: Path) -> dict[str, Any]:
    """Writes pareto.json, pareto.svg and sweep.html; answers what the first holds."""
    points = points_of(study, sweep, folder)
    measured = [m for m in MEASURES if any(p[m] is not None for p in points)]
    for index, point in enumerate(points):
        point["on_front"] = index in pareto(points, measured)
    found = {
        "schema": 1, "sweep": sweep.name, "metric": sweep.metric, "goal": sweep.goal,
        "front_over": measured, "points": points,
        "front": [p["trial"] for p in points if p["on_front"]],
    }  # fmt: skip
    write_json(folder / "pareto.json", found)
    _write_pictures(found, sweep, folder)
    return found


def _write_pictures(found: dict[str, Any], sweep: Sweep, folder: Path) -> None:
    from compress.scripts.lib.html_report import figure, render, write_page
    from compress.scripts.lib.report_plots import pareto_plot, standalone

    drawn = [p for p in found["points"] if p["quality"] is not None and p["bytes"]]
    figures = []
    for key, label in (("bytes", "bytes"), ("latency", "latency over the baseline's")):
        known = [p for p in drawn if p[key] is not None]
        svg = pareto_plot(
            [(p[key], p["quality"], p["on_front"], p["trial"]) for p in known],
            key=key,
            xlabel=label,
        )
        if svg:
            figures.append(figure(svg, f"Loss against {label}; the line joins the Pareto front."))
        if svg and key == "bytes":
            write_page(folder / "pareto.svg", standalone(svg))
    page = render(
        "comparison", title=f"Sweep: {sweep.name}", subtitle=sweep.purpose, warnings=[],
        results=table_of(found), results_note=note_of(found), figures=figures, differences=None,
        commands=[(p["trial"], p["command"]) for p in found["points"] if p["on_front"]],
    )  # fmt: skip
    write_page(folder / "sweep.html", page)


def note_of(found: dict[str, Any]) -> str:
    """Which measures the front weighs, and what is missing."""
    over = " and ".join(found["front_over"]) or "nothing: no trial finished"
    text = f"A star marks the Pareto front: no other trial is better in {over}."
    if "latency" not in found["front_over"]:
        text += " Latency was not measured (scripts/benchmark.py does)."
    return text


def table_of(found: dict[str, Any]) -> dict[str, Any]:
    """Every trial, the front first, then by quality."""
    names = list(dict.fromkeys(name for p in found["points"] for name in p["parameters"]))
    order = sorted(
        found["points"],
        key=lambda p: (not p["on_front"], p["quality"] is None, p["quality"] or 0.0, p["trial"]),
    )
    rows = [
        {"kind": "main" if p["on_front"] else "", "cells": [
            f"{p['trial']}{' *' if p['on_front'] else ''}",
            *(_value(p["parameters"].get(name)) for name in names),
            STATES.get(p["state"], p["state"]) if p["quality"] is None else loss_text(p["quality"]),
            bytes_text(p["bytes"]), times(p["ratio"]), number(p["latency"], 3),
            duration(p["seconds"]),
        ]}
        for p in order
    ]  # fmt: skip
    head = ["trial", *(n.removeprefix("callbacks.") for n in names), "loss", "bytes", "smaller by",
            "latency", "training"]  # fmt: skip
    return {"caption": f"Trials of {found['sweep']}", "head": head, "rows": rows, "numbers": True}


def _value(value: Any) -> str:
    return number(value, 4) if isinstance(value, float) else words(value)
