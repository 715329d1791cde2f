"""report.html: one self-contained page about a run, readable without a script or a network."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.scripts.lib import report_views as views
from compress.scripts.lib.report_data import (
    Metrics,
    flat,
    is_nats,
    model_rows,
    pick,
    read_metrics,
    read_report,
    words,
)
from compress.scripts.lib.report_layers import layers_of

MOST_CURVES = 8


def write_html(run_dir: Path) -> Path:
    """Renders `run_dir`/report.json and metrics.jsonl; answers the path of the page.

    A value that is missing shows as a dash; a run that failed gets a page that says why.

    Raises:
        BadInput: there is no readable report.json.
    """
    run_dir = Path(run_dir)
    page = render_page(read_report(run_dir), read_metrics(run_dir))
    return write_page(run_dir / "report.html", page)


def write_page(path: Path, page: str) -> Path:
    """Writes beside and renames: a reader sees the old page or the new one, whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    # a lone surrogate of a broken tokenizer must not cost the page
    beside.write_text(page, encoding="utf-8", errors="replace")
    beside.replace(path)
    return path


def render_page(report: Mapping[str, Any], metrics: Metrics) -> str:
    """The page of one run as a string."""
    asked, every_setting = views.asked_of(report)
    left_out = f"{metrics.left_out} values were no finite numbers or stood in broken lines."
    return render(
        "page",
        title=views.title_of(report),
        subtitle=_subtitle(report),
        failure=views.failure_of(report),
        tiles=views.tiles_of(report),
        notes=[words(note) for note in report.get("notes") or []],
        asked=asked,
        every_setting=every_setting,
        results=views.results_of(report),
        results_note=views.results_note(report),
        size_figures=size_figures(report),
        curves=curve_figures(metrics, unit=_unit(report)),
        left_out=left_out if metrics.left_out else "",
        curve_table=views.curve_table(metrics),
        layers=layers_of(report),
        paths=views.paths_of(report),
        sections=views.sections_of(report),
        samples=views.samples_of(report),
        environment=flat(report["environment"]) if report.get("environment") else [],
        command=words(report.get("command")),
    )


def render(name: str, **values: Any) -> str:
    """One of the templates, every value escaped."""
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    from compress.scripts.lib import report_template as text

    sources = {"shell": text.SHELL, "macros": text.MACROS, "page": text.PAGE,
               "comparison": text.COMPARISON}  # fmt: skip
    engine = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return engine.get_template(name).render(style=Markup(text.STYLE), **values)


def size_figures(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Loss against bytes, one pair of bars a model."""
    from compress.scripts.lib.report_plots import loss_and_bytes

    metric = str(pick(report, "quality.metric") or "loss")
    unit = _unit(report)
    svg = loss_and_bytes(model_rows(report), key="size", metric=f"{metric}, {unit}")
    caption = "Loss against bytes; all bars begin at zero. Green: the compressed student."
    return [figure(svg, caption)] if svg else []


def curve_figures(metrics: Metrics, *, unit: str) -> list[dict[str, Any]]:
    """Training by term, validation of every arm, the teacher's own training."""
    from compress.scripts.lib.report_plots import loss_curves

    found = []
    for key, ylabel, caption, curves in _groups(metrics, unit):
        names = list(curves)[:MOST_CURVES]
        shown = {name: curves[name] for name in names}
        if len(curves) > MOST_CURVES:
            caption += f" The first {MOST_CURVES} of {len(curves)}."
        alt = f"Line plot: {caption} Lines: {', '.join(names)}. The figures stand in a table below."
        svg = loss_curves(shown, key=key, alt=alt, ylabel=ylabel)
        found += [figure(svg, caption)] if svg else []
    return found


def figure(svg: str | None, caption: str) -> dict[str, Any]:
    """A picture that was made here and is no text of the run: it is not escaped again."""
    from markupsafe import Markup

    return {"svg": Markup(svg or ""), "caption": caption}


def _groups(metrics: Metrics, unit: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    curves = metrics.curves
    train = curves.get("train", {})
    arms = {phase: terms["val/loss"] for phase, terms in curves.items() if "val/loss" in terms}
    teacher = arms.pop("teacher", None)
    own = {"validation": teacher} if teacher else {}
    return [
        ("train", unit, "Training loss of the student by term, each as it is weighted.",
         _under(train, "train/")),
        ("val", unit, "Validation loss of the student during training.", arms),
        ("teacher", unit, "The teacher's own training.",
         _under(curves.get("teacher", {}), "train/") | own),
        ("lr", "learning rate", "Learning rate of the student.",
         {k: v for k, v in train.items() if k.startswith("lr")}),
    ]  # fmt: skip


def _under(terms: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The terms below a prefix; `loss` is their sum and leaves when it is the only term twice."""
    found = {name.removeprefix(prefix): p for name, p in terms.items() if name.startswith(prefix)}
    if set(found) == {"labels", "loss"} and found["labels"] == found["loss"]:
        del found["loss"]
    return found


def _unit(report: Mapping[str, Any]) -> str:
    return str(pick(report, "quality.unit") or ("nats/token" if is_nats(report) else ""))


def _subtitle(report: Mapping[str, Any]) -> str:
    schemes = [str(e["scheme"]) for e in views.records(report.get("exports")) if e.get("scheme")]
    target = ", ".join(dict.fromkeys(schemes))
    return f"Status: {words(report.get('status'))}{f'. Exported as {target}' if target else ''}."
