"""One page about two or more runs: results side by side, curves overlaid, settings that differ."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.errors import BadInput
from compress.scripts.lib.html_report import figure, render, write_page
from compress.scripts.lib.report_data import (
    MISSING,
    ModelRow,
    bytes_text,
    finite,
    flat,
    loss_text,
    model_rows,
    percent,
    pick,
    read_metrics,
    read_report,
    said_of,
    times,
    verified,
    words,
)


def write_comparison(run_dirs: Sequence[Path], path: Path) -> Path:
    """Renders one page for two or more run folders; answers its path.

    Raises:
        BadInput: fewer than two folders, or some without a readable report.json (all are listed).
    """
    if len(run_dirs) < 2:
        raise BadInput("compare= needs two run folders or more: compare=runs/a,runs/b")
    problems, reports = [], []
    for folder in run_dirs:
        try:
            reports.append(read_report(folder))
        except BadInput as error:
            problems.append(str(error))
    if problems:
        raise BadInput("\n".join(problems))
    names = short_names(run_dirs)
    return write_page(path, _render(names, reports, [read_metrics(d) for d in run_dirs]))


def short_names(run_dirs: Sequence[Path]) -> list[str]:
    """The folders without what they share; each tells its run apart.

    >>> short_names([Path("runs/qat/a"), Path("runs/qat/b")])
    ['a', 'b']
    """
    paths = [os.path.abspath(folder) for folder in run_dirs]
    if len(set(paths)) < len(paths):
        raise BadInput("compare= names one run folder twice")
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, shared) for path in paths]


def _render(names: list[str], reports: list[dict[str, Any]], metrics: list[Any]) -> str:
    curves = {
        name: m.curves["train"]["val/loss"]
        for name, m in zip(names, metrics, strict=True)
        if "val/loss" in m.curves.get("train", {})
    }
    return render(
        "comparison",
        title=f"{len(names)} compression runs",
        subtitle=", ".join(names),
        warnings=_warnings(names, reports),
        results=_results(names, reports),
        results_note="Loss on the held-out validation part of each run.",
        figures=_figures(names, reports, curves),
        differences=_differences(names, reports),
        commands=[(n, words(r.get("command"))) for n, r in zip(names, reports, strict=True)],
    )


def _figures(
    names: list[str], reports: list[dict[str, Any]], curves: dict[str, Any]
) -> list[dict[str, Any]]:
    from compress.scripts.lib.report_plots import loss_and_bytes, loss_curves

    rows = [_compressed(name, report) for name, report in zip(names, reports, strict=True)]
    bars = loss_and_bytes(rows, key="size", metric="loss")
    alt = f"Line plot of validation loss for {', '.join(curves)}."
    lines = loss_curves(curves, key="val", alt=alt)
    made = [(bars, "Loss against bytes of the compressed students."),
            (lines, "Validation loss during training.")]  # fmt: skip
    return [figure(svg, caption) for svg, caption in made if svg]


def _compressed(name: str, report: Mapping[str, Any]) -> ModelRow:
    row = next(row for row in model_rows(report) if row.key == "compressed")
    return ModelRow(
        key="run", name=name, loss=row.loss, perplexity=row.perplexity, bytes=row.bytes,
        ratio=row.ratio,
    )  # fmt: skip


def _warnings(names: list[str], reports: list[dict[str, Any]]) -> list[str]:
    found = [
        f"{name} did not finish: {words(report.get('status'))}"
        for name, report in zip(names, reports, strict=True)
        if report.get("status") != "finished"
    ]
    measures = {(pick(r, "quality.metric"), pick(r, "quality.unit")) for r in reports}
    if len(measures) > 1:
        found.append("The runs were measured differently: their losses cannot be compared.")
    # the same validation tokens give the same teacher the same loss
    data = {repr(pick(r, "asked.data")) for r in reports}
    if len(data) > 1:
        found.append("The runs used different data settings: their losses are on other tokens.")
    return found


def _results(names: list[str], reports: list[dict[str, Any]]) -> dict[str, Any]:
    head = ["run", "teacher", "dense start", "PTQ start", "compressed", "bytes", "smaller by",
            "quality kept", "verified", "training"]  # fmt: skip
    rows = []
    for name, report in zip(names, reports, strict=True):
        by_key = {row.key: row for row in model_rows(report)}
        losses = [
            loss_text(by_key[k].loss) for k in ("teacher", "start", "start_ptq", "compressed")
        ]
        seconds = finite(pick(report, "seconds.train"))
        cells = [
            name, *losses, bytes_text(by_key["compressed"].bytes),
            times(by_key["compressed"].ratio), percent(pick(report, "quality.compare.kept")),
            words(verified(report)), MISSING if seconds is None else f"{seconds:.0f} s",
        ]  # fmt: skip
        rows.append({"kind": "", "cells": cells})
    return {"caption": "Results of each run", "head": head, "rows": rows, "numbers": True}


def _differences(names: list[str], reports: list[dict[str, Any]]) -> dict[str, Any] | None:
    settings = _settings(reports)
    keys = list(dict.fromkeys(key for known in settings for key in known))
    rows = [
        {"kind": "", "cells": [key, *(known.get(key, MISSING) for known in settings)]}
        for key in keys
        if key != "run_dir" and len({known.get(key, MISSING) for known in settings}) > 1
    ]
    head = ["setting", *names]
    caption = "Settings in which the runs differ"
    return {"caption": caption, "head": head, "rows": rows, "numbers": False} if rows else None


def _settings(reports: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Every setting by its dotted name; a callback that some run lacks is one line."""
    asked = [report.get("asked") or {} for report in reports]
    callbacks = [a.get("callbacks") if isinstance(a, Mapping) else None for a in asked]
    named = [c if isinstance(c, Mapping) else {} for c in callbacks]
    shared = {name for name in named[0] if all(name in other for other in named)}
    found = []
    for one, own in zip(asked, named, strict=True):
        plain = {k: v for k, v in one.items() if k != "callbacks"}
        known = dict(flat(plain)) if plain else {}
        for name, settings in own.items():
            alike = flat({f"callbacks.{name}": settings})
            known |= dict(alike if name in shared else [(f"callbacks.{name}", said_of(settings))])
        found.append(known)
    return found
