"""The two tables of a run on the terminal: what will happen, and what happened."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compress.scripts.lib.report_data import (
    MISSING,
    bytes_text,
    duration,
    finite,
    loss_text,
    model_rows,
    number,
    percent,
    pick,
    records,
    said_of,
    times,
    verified,
    won_back,
    words,
)
from compress.scripts.lib.secrets import masked_text

ADAM_BYTES = 16
"""Bytes a trained parameter takes: float32 weight, gradient and two moments."""


def first_table(
    config: Mapping[str, Any],
    *,
    data: Any,
    teacher: Any | None,
    student: Any,
    console: Console | None = None,
    quiet: bool = False,
) -> None:
    """Prints what will happen: models, compression, data, steps, least memory.

    Args:
        config: the resolved settings (a mapping, Hydra's own included).
        data: its `train` and `validation` parts have a length and rows with `input_ids`.
        teacher: a module, or None where no loss asks for one.
        student: the module to be trained.
        console: where to print; None is standard output.
        quiet: True prints nothing.
    """
    if quiet:
        return
    console = console or _console()
    table = _table(console, "What will happen", ("", "left"), ("", "left"))
    for name, value in _plan(config, data=data, teacher=teacher, student=student):
        table.add_row(name, _say(console, value))
    console.print(table)


def last_table(
    report: Mapping[str, Any],
    *,
    run_dir: Path | None = None,
    page: Path | None = None,
    console: Console | None = None,
    quiet: bool = False,
) -> None:
    """Prints what happened: each model's loss, perplexity, bytes; verified; where; what next.

    Args:
        report: what report.json holds; a missing figure shows as a dash.
        run_dir: folder of the run, for the paths; None leaves them as they stand.
        page: path of report.html; None leaves the line out.
        console: where to print; None is standard output.
        quiet: True prints nothing.
    """
    if quiet:
        return
    console = console or _console()
    console.print(_results(report, console))
    for name, value in _after(report, run_dir=run_dir, page=page):
        # soft_wrap: a path or command that is broken over lines cannot be copied
        console.print(_say(console, f"{name + ':':12}{value}"), soft_wrap=True)


def print_grid(grid: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Prints a table that has `caption`, `head` and `rows` of `cells`, numbers to the right."""
    console = console or _console()
    sides = ["left", *["right"] * (len(grid["head"]) - 1)]
    table = _table(console, grid["caption"], *zip(grid["head"], sides, strict=True))
    for row in grid["rows"]:
        table.add_row(*(_say(console, cell) for cell in row["cells"]))
    console.print(table)


def _results(report: Mapping[str, Any], console: Console) -> Table:
    unit = words(pick(report, "quality.unit")).replace(MISSING, "")
    metric = f"{pick(report, 'quality.metric') or 'loss'} {unit}".strip()
    heads = [("model", "left"), (metric, "right"), ("perplexity", "right"), ("bytes", "right")]
    rows = model_rows(report)
    shrank = any(row.ratio and row.ratio > 1 for row in rows)
    heads += [("", "right")] if shrank else []
    table = _table(console, f"What happened: {words(report.get('recipe'))}", *heads)
    for row in rows:
        cells = (row.name, loss_text(row.loss), number(row.perplexity), bytes_text(row.bytes))
        smaller = f"{times(row.ratio)} smaller" if row.ratio and row.ratio > 1 else ""
        style = "bold" if row.key == "compressed" and console.is_terminal else None
        table.add_row(*(_say(console, c) for c in (*cells, *[smaller] * shrank)), style=style)
    return table


def _after(
    report: Mapping[str, Any], *, run_dir: Path | None, page: Path | None
) -> list[tuple[str, str]]:
    lines = []
    if report.get("status") != "finished":
        lines.append(("Status", f"{words(report.get('status'))}: {words(report.get('error'))}"))
    kept = finite(pick(report, "quality.compare.kept"))
    if kept is not None:
        lines.append(("Quality", f"{percent(kept)} of the dense student kept"))
    if won := won_back(report):
        lines.append(("Won back", won))
    state = verified(report)
    said = {
        True: "yes: reloaded, equal to the trained model",
        False: "NO",
        None: "nothing exported",
    }
    lines.append(("Verified", said[state]))
    phases = report.get("seconds")
    if isinstance(phases, Mapping) and phases:
        lines.append(("Time", ", ".join(f"{k} {duration(v)}" for k, v in phases.items())))
    exports = [_export_path(e, run_dir) for e in records(report.get("exports")) if e.get("path")]
    lines += [("Export", path) for path in exports]
    if page is not None:
        lines.append(("Report", str(page)))
    if following := _next_command(report, run_dir):
        lines.append(("Next", following))
    return lines


def _export_path(entry: Mapping[str, Any], run_dir: Path | None) -> str:
    path = str(entry["path"])
    return path if run_dir is None else str(Path(run_dir) / path)


def _next_command(report: Mapping[str, Any], run_dir: Path | None) -> str | None:
    for entry in records(report.get("exports")):
        if entry.get("target") == "vllm" and entry.get("verified") is True and entry.get("path"):
            path = shlex.quote(_export_path(entry, run_dir))
            return f"python -m vllm.entrypoints.openai.api_server --model {path}"
    return None


def _plan(
    config: Mapping[str, Any], *, data: Any, teacher: Any | None, student: Any
) -> list[tuple[str, str]]:
    rows = [
        ("teacher", _elsewhere(config) if teacher is None else _teacher(config, teacher)),
        ("student", _parameters(student)),
    ]
    callbacks = pick(config, "callbacks")
    for name, settings in callbacks.items() if isinstance(callbacks, Mapping) else ():
        rows.append((f"callbacks.{name}", said_of(settings)))
    rows += _work(config, data)
    share = " of a rank, its share of the teacher" if _host(config) == "deepspeed" else ""
    least = bytes_text(_least_memory(teacher, student))
    rows.append(("memory", f"{least}{share} and activations"))
    if target := pick(config, "target"):
        rows.append(("export", f"for {target}, tensors that stay whole in {_dtype(config)}"))
    return rows


def _work(config: Mapping[str, Any], data: Any) -> list[tuple[str, str]]:
    length = len(data.train[0]["input_ids"])
    parts = [f"{len(data.train) * length:,} tokens to train on"]
    if getattr(data, "validation", None) is not None:
        parts.append(f"{len(data.validation) * length:,} held out")
    steps, batch = (finite(pick(config, f"trainer.{k}")) for k in ("max_steps", "batch_size"))
    accumulate = finite(pick(config, "trainer.accumulate")) or 1.0
    work = f"{number(steps)} of {number(batch)} x {length} tokens"
    if steps and batch and steps > 0:
        seen = steps * batch * accumulate * length
        passes = seen / max(len(data.train) * length, 1)
        work += f": {number(seen, 12)} tokens, {passes:.2g} times the data"
        ranks = (finite(pick(config, "trainer.num_nodes")) or 1) * _devices(config)
        work += ", on each rank" if ranks != 1 else ""
    return [("data", "; ".join(parts)), ("steps", work)]


def _devices(config: Mapping[str, Any]) -> float:
    """Devices of one machine; "auto" may be several."""
    return finite(pick(config, "trainer.devices")) or 0.0


def _parameters(model: Any) -> str:
    tensors = list(model.parameters())
    count = sum(t.numel() for t in tensors)
    held = bytes_text(sum(_held(t) for t in tensors))
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in tensors})
    return f"{count / 1e6:,.2f}M parameters, {held} as {' and '.join(kinds)}"


def _teacher(config: Mapping[str, Any], teacher: Any) -> str:
    """Its size, and where its weights are if not in this process: a skeleton's are on `meta`."""
    tensors = list(teacher.parameters())
    if not all(t.is_meta for t in tensors):
        return _parameters(teacher)
    count = f"{sum(t.numel() for t in tensors) / 1e6:,.2f}M parameters"
    shared = _host(config) == "deepspeed"
    return count + (", shared out over the ranks" if shared else "; its signals are cached")


def _host(config: Mapping[str, Any]) -> str:
    return str(pick(config, "teacher.host") or "")


def _elsewhere(config: Mapping[str, Any]) -> str:
    """What a teacher that is no module here is: a server's, a cache's, or none at all."""
    host, path = _host(config), str(pick(config, "teacher.path") or "")
    callbacks = pick(config, "callbacks")
    asked = any("istillation" in str(c) for c in dict(callbacks or {}).values())
    if not asked or host not in ("served", "cached"):
        return "none"
    if host == "cached":
        return f"cached: {pick(config, 'teacher.cache') or 'found by teacher, tokenizer and data'}"
    name = pick(config, "teacher.served.model") or path
    return masked_text(f"{name}, served by {pick(config, 'teacher.served.url')}")


def _held(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _least_memory(teacher: Any | None, student: Any) -> int:
    """Weights, gradients and moments of the student, and the teacher's weights."""
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    frozen = sum(_held(p) for p in student.parameters() if not p.requires_grad)
    return ADAM_BYTES * trained + frozen + (
        sum(_held(p) for p in teacher.parameters() if not p.is_meta) if teacher is not None else 0
    )  # fmt: skip


def _dtype(config: Mapping[str, Any]) -> str:
    return str(pick(config, "export_dtype") or "float32")


def _console() -> Console:
    """Standard output; no markup, so that a name with brackets prints as it is."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:  # a log file has no width of its own
        console.width = 120
    return console


def _table(console: Console, title: str, *heads: tuple[str, Any]) -> Table:
    look = box.SIMPLE_HEAD if console.is_terminal else box.ASCII2
    named = any(head for head, _ in heads)
    table = Table(
        title=_say(console, title), box=look, title_justify="left", show_header=named,
        title_style="bold" if console.is_terminal else "",
    )  # fmt: skip
    for i, (head, side) in enumerate(heads):
        table.add_column(head, justify=side, overflow="fold", no_wrap=i == 0 and named)
    return table


def _say(console: Console, text: str) -> Text:
    """The text as the stream's encoding can hold it; `Text`, so that brackets are no markup."""
    if console.encoding.startswith("utf"):
        return Text(text)
    encoded = text.replace(MISSING, "-").encode(console.encoding, "replace")
    return Text(encoded.decode(console.encoding))
