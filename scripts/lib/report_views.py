"""What each part of a report says, as plain data for the templates."""

from collections.abc import Mapping
from typing import Any

from compress.scripts.lib.report_data import (
    MISSING,
    Metrics,
    bytes_text,
    duration,
    finite,
    flat,
    loss_text,
    model_rows,
    number,
    original_bytes,
    percent,
    pick,
    records,
    said_of,
    times,
    verified,
    won_back,
    words,
)
from compress.scripts.lib.report_history import history_figures

MAIN_SETTINGS = (
    "task", "teacher.kind", "teacher.path", "teacher.layers", "teacher.hidden", "teacher.host",
    "student.kind", "student.path", "student.layers", "data.path", "data.roots", "data.name",
    "data.sequence_length", "data.length", "trainer.max_steps", "trainer.batch_size",
    "trainer.precision", "training.learning_rate", "training.label_weight", "seed", "target",
    "purpose", "export_dtype", "compare",
)  # fmt: skip


def title_of(report: Mapping[str, Any]) -> str:
    """The recipe's name, or what is known."""
    return f"Compression run: {words(report.get('recipe')) if report.get('recipe') else 'unnamed'}"


def failure_of(report: Mapping[str, Any]) -> dict[str, str] | None:
    """The banner of a run that did not finish."""
    status = report.get("status")
    if status == "finished":
        return None
    error = report.get("error")
    if isinstance(error, Mapping):
        error = "\n".join(f"{name}: {value}" for name, value in flat(error))
    reached = ", ".join(report["seconds"]) if isinstance(report.get("seconds"), Mapping) else ""
    return {
        "title": f"This run did not finish: {words(status)}",
        "text": str(error) if error else "No reason was recorded.",
        "note": f"Phases that were begun and timed: {reached or 'none'}. "
        "What is missing below was not reached. Go on from the last checkpoint with the same "
        "command and ckpt=last.",
    }


def tiles_of(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The headline: quality kept, size, verified, time."""
    return [_quality_tile(report), _size_tile(report), _verified_tile(report), _time_tile(report)]


def _quality_tile(report: Mapping[str, Any]) -> dict[str, str]:
    kept = finite(pick(report, "quality.compare.kept"))
    if kept is not None:
        note = "of the dense student trained alike: exp(dense - compressed)"
        return _tile("Quality kept", percent(kept), note)
    rows = {row.key: row for row in model_rows(report)}
    teacher, compressed = rows["teacher"].perplexity, rows["compressed"].perplexity
    if teacher and compressed:
        note = "perplexity of the teacher over the compressed student's; compare=true sets it "
        return _tile(
            "Quality kept", percent(teacher / compressed), note + "against a dense student"
        )
    metric = str(pick(report, "quality.metric") or "quality")
    return _tile(f"Compressed: {metric}", loss_text(rows["compressed"].loss), "not compared")


def _size_tile(report: Mapping[str, Any]) -> dict[str, str]:
    before, after = original_bytes(report), finite(pick(report, "size.compressed_bytes"))
    note = f"{bytes_text(before)} to {bytes_text(after)}" if before and after else "not exported"
    ratio = finite(pick(report, "size.ratio"))
    return _tile("Smaller by", times(ratio), note)


def _verified_tile(report: Mapping[str, Any]) -> dict[str, str]:
    state, exports = verified(report), records(report.get("exports"))
    if state is None:
        return _tile("Export verified", MISSING, "nothing was exported")
    passed = sum(entry.get("verified") is True for entry in exports)
    note = f"{passed} of {len(exports)} reloaded and equal to the trained model"
    return _tile("Export verified", "yes" if state else "no", note, "good" if state else "bad")


def _time_tile(report: Mapping[str, Any]) -> dict[str, str]:
    phases = report.get("seconds")
    known = (
        {k: s for k, v in phases.items() if (s := finite(v))} if isinstance(phases, Mapping) else {}
    )
    # `total` may stand beside its parts
    total = known.pop("total", None) or (sum(known.values()) if known else None)
    note = ", ".join(f"{name} {duration(value)}" for name, value in known.items())
    return _tile("Time", duration(total), note or "not recorded")


def _tile(label: str, value: str, note: str, mood: str = "") -> dict[str, str]:
    return {"label": label, "value": value, "note": note, "mood": mood}


def asked_of(report: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The main settings, and all of them."""
    asked = report.get("asked")
    if not isinstance(asked, Mapping) or not asked:
        return [], []
    known = [
        (key, words(pick(asked, key))) for key in MAIN_SETTINGS if pick(asked, key) is not None
    ]
    callbacks = asked.get("callbacks")
    for name, settings in callbacks.items() if isinstance(callbacks, Mapping) else ():
        known.append((f"callbacks.{name}", said_of(settings)))
    everything = flat(asked)
    return (known, everything) if known else (everything, [])


def results_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """The table of models."""
    kinds = {"compressed": "main", "dense": "break"}
    metric = str(pick(report, "quality.metric") or "loss")
    unit = str(pick(report, "quality.unit") or "")
    rows = [
        {
            "kind": kinds.get(row.key, ""),
            "cells": [
                row.name, loss_text(row.loss), number(row.perplexity, 4), bytes_text(row.bytes),
                times(row.ratio),
            ],
        }
        for row in model_rows(report)
    ]  # fmt: skip
    head = [
        "model",
        f"{metric} ({unit})" if unit else metric,
        "perplexity",
        "weights",
        "smaller by",
    ]
    return {
        "caption": "Quality and size of each model",
        "head": head,
        "rows": rows,
        "numbers": True,
    }


def results_note(report: Mapping[str, Any]) -> str:
    """How to read the table, and the two figures of a comparison."""
    note = (
        "All figures are measured on the same tokens of the held-out validation part. "
        "Sizes are bytes of weights; “smaller by” compares with the teacher"
        f"{'' if pick(report, 'size.teacher_bytes') else ' or, without one, the dense student'}."
    )
    return f"{note} {won_back(report)}".strip()


def curve_table(metrics: Metrics) -> dict[str, Any] | None:
    """First, last and least value of each curve."""
    rows = [
        {"kind": "", "cells": [
            f"{phase}: {term}", str(len(points)), number(points[0][1]), number(points[-1][1]),
            number(min(value for _, value in points)),
        ]}
        for phase, terms in metrics.curves.items()
        for term, points in terms.items()
        if term != "epoch"
    ]  # fmt: skip
    head = ["phase: term", "values", "first", "last", "least"]
    caption = "First, last and least value of each logged term"
    return {"caption": caption, "head": head, "rows": rows, "numbers": True} if rows else None


def paths_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The router's shares."""
    shares = pick(report, "routing.paths") or pick(report, "routing.shares")
    known = shares.items() if isinstance(shares, Mapping) else ()
    return [
        {"name": str(name), "text": percent(share), "width": round(100 * min(max(share, 0), 1), 2)}
        for name, value in known
        if (share := finite(value)) is not None
    ]


FACTS = (
    ("routing", "Routing"), ("sparsity", "Sparsity"), ("pruning", "Pruning"),
    ("quantization", "Quantisation"), ("calibration", "Calibration"),
)  # fmt: skip


def sections_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Everything that is told by a plain table, where it is there."""
    sections = [_teacher_cost(report)]
    for key, title in _fact_parts(report):
        known = {k: v for k, v in report[key].items() if not _drawn(key, k, v)}
        figures = history_figures(report, key)
        if known or figures:
            sections.append({"title": title, "facts": flat(known) if known else [],
                             "figures": figures})  # fmt: skip
    exports = record_table(report.get("exports"), "Exports and their verification")
    sections.append(
        {"title": "Exports and their verification", "grid": exports,
         "text": "" if exports else "Nothing was exported."}
    )  # fmt: skip
    if speed := record_table(report.get("speed"), "Measured speed"):
        sections.append({"title": "Measured speed", "grid": speed})
    empty = {"title": "", "text": "", "grid": None, "facts": [], "figures": []}
    return [empty | section for section in sections if section]


def _fact_parts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys and titles of the parts that callbacks wrote; the second of a kind has a name too."""
    return [
        (str(key), title + str(key).removeprefix(kind).replace("_", " "))
        for kind, title in FACTS
        for key, value in report.items()
        if str(key).startswith(kind) and isinstance(value, Mapping)
    ]


def _drawn(part: str, key: str, value: Any) -> bool:
    """What the page shows as a picture or a list of records, which report.json has in full."""
    shares = part.startswith("routing") and key in ("paths", "shares")
    return shares or bool(records(value)) or (key == "layers" and isinstance(value, Mapping))


def _teacher_cost(report: Mapping[str, Any]) -> dict[str, Any]:
    cost = report.get("teacher_cost")
    if not isinstance(cost, Mapping) or not cost:
        return {}
    flops, full = finite(cost.get("flops")), finite(cost.get("flops_if_always_full"))
    text = ""
    if flops is not None and full:
        text = f"The teacher cost {percent(flops / full)} of asking it in full at every step."
    return {"title": "What the teacher cost", "text": text, "facts": flat(cost)}


def record_table(value: Any, caption: str) -> dict[str, Any] | None:
    """A list of mappings as a table whose columns are all their keys."""
    rows = records(value)
    if not rows:
        return None
    head = list(dict.fromkeys(str(key) for row in rows for key in row))
    cells = [
        [_cell(name, {str(k): v for k, v in row.items()}.get(name)) for name in head]
        for row in rows
    ]
    names = [name.replace("_", " ") for name in head]
    return {"caption": caption, "head": names, "numbers": False,
            "rows": [{"kind": "", "cells": row} for row in cells]}  # fmt: skip


def _cell(name: str, value: Any) -> str:
    if name == "bytes" or name.endswith("_bytes"):
        return bytes_text(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v}" for k, v in flat(value))
    return words(value)


SAMPLED = (("teacher", "Teacher"), ("dense", "Dense student"), ("compressed", "Compressed student"))


def samples_of(report: Mapping[str, Any], limit: int = 4000) -> list[dict[str, Any]]:
    """Prompts and continuations; each text is cut where it would swell the page."""
    return [
        {
            "prompt": str(sample.get("prompt") or MISSING)[:limit],
            "texts": [
                (title, str(sample[key])[:limit] if sample.get(key) else MISSING)
                for key, title in SAMPLED
                if any(key in other for other in records(report.get("samples")))
            ],
        }
        for sample in records(report.get("samples"))[:20]
    ]
