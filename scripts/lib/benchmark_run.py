"""One benchmark: start the arms, run every load, write the figures after each, draw the plot."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from compress.errors import BadInput, CompressError
from compress.evaluate.arms import Arm
from compress.evaluate.engines import EngineSettings
from compress.evaluate.engines.exported import checkpoint_config
from compress.evaluate.paired import serve_closed, serve_open, summaries
from compress.evaluate.workload import (
    Job,
    draw_lengths,
    make_jobs,
    poisson_arrivals,
    read_lengths,
    refuse_too_long,
)
from compress.scripts.lib.benchmark_tables import load_plot, print_run, size_of
from compress.scripts.lib.facts import machine, reproduce
from compress.scripts.lib.run_folder import write_json
from compress.scripts.lib.secrets import masked, masked_text, masked_words


def run(settings: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """Every load in turn; whatever fails, the runs before it stand in `out`.

    What fails before its first run leaves an `out` with runs as it is, and says so beside it.
    """
    result: dict[str, Any] = {
        "schema": 1, "command": reproduce(masked_words(words), "scripts/benchmark.py"),
        "machine": machine(), "engine": settings["engine"], "status": "running",
        "settings": masked(settings), "arms": {}, "runs": [],
    }  # fmt: skip
    try:
        if settings["engine"] == "server":
            from compress.scripts.lib.benchmark_server import run_servers

            run_servers(settings, result, done=lambda run: _save(settings, result, latest=run))
        else:
            _run_arms(settings, result)
        result["status"] = "finished"
    except (CompressError, KeyboardInterrupt) as error:
        result["status"] = "failed"
        result["error"] = masked_text(str(error)) or type(error).__name__
        raise
    finally:
        _save(settings, result)
    return result


def _save(
    settings: dict[str, Any], result: dict[str, Any], *, latest: dict[str, Any] | None = None
) -> None:
    out = Path(settings["out"])
    if not result["runs"] and _holds_runs(out):
        kept, out = out, out.with_suffix(".failed.json")
        print(f"{kept} keeps the runs of before; this start stands in {out}", file=sys.stderr)
    write_json(out, result)
    if latest is not None:
        print_run(latest)
    if result["runs"]:
        load_plot(result, out.with_suffix(".png"))


def _holds_runs(file: Path) -> bool:
    """Whether figures would be lost with this file; one that is not understood may hold some."""
    if not file.exists():
        return False
    try:
        return bool(json.loads(file.read_text())["runs"])
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _run_arms(settings: dict[str, Any], result: dict[str, Any]) -> None:
    with ExitStack() as stack:
        arms = {
            name: stack.enter_context(_arm(name, settings))
            for name in ("model", "baseline")
            if settings[name]
        }
        for name, arm in arms.items():
            result["arms"][name] = {"path": arm.path, **arm.facts, "bytes": size_of(arm.path)}
        _same_kind(arms)
        generates = all(arm.facts["generates"] for arm in arms.values())
        refuse_too_long(
            [(prompt, new if generates else 0) for prompt, new in _lengths(settings)],
            {name: limit for name, arm in arms.items() if (limit := _positions(arm.path))},
        )
        vocabulary = min(int(arm.facts["vocab_size"]) for arm in arms.values())
        for concurrency in settings["concurrency"]:
            jobs = _jobs(settings, vocabulary, batch=int(concurrency))
            found = serve_closed(
                arms, jobs, rounds=min(settings["rounds"], len(jobs)),
                warm_up=settings["warm_up"],
            )  # fmt: skip
            load = {"loop": "closed", "concurrency": int(concurrency)}
            _note(settings, result, arms, load, found)
        for rate in settings["rates"]:
            jobs = _jobs(settings, vocabulary, batch=1)
            arrivals = poisson_arrivals(len(jobs), rate=rate, seed=settings["seed"])
            found = serve_open(arms, jobs, arrivals, warm_up=settings["warm_up"])
            _note(settings, result, arms, {"loop": "open", "rate": rate}, found)


def _same_kind(arms: dict[str, Arm]) -> None:
    """Refuses what does not compare: writing and not, a key-value cache and none.

    Raises:
        BadInput: names both, and the way out.
    """
    cached = {name: arm.facts.get("cached", False) for name, arm in arms.items()}
    writes = {name: bool(arm.facts["generates"]) for name, arm in arms.items()}
    if len(set(writes.values())) > 1:
        told = {True: "writes text", False: "answers with one pass"}
        listed = ", ".join(f"{name} {told[writing]}" for name, writing in writes.items())
        raise BadInput(f"{listed}: their times do not compare. Name two models of one task")
    if all(writes.values()) and len(set(cached.values())) > 1:
        keeps = next(name for name, held in cached.items() if held)
        lacks = next(name for name, held in cached.items() if not held)
        raise BadInput(
            f"{keeps} has a key-value cache and {lacks} has none: their times do not compare. "
            "For engine=onnxruntime give options={cache: true}; an ONNX file needs cache=true in "
            "scripts/export.py"
        )


def _note(
    settings: dict[str, Any], result: dict[str, Any], arms: dict[str, Arm],
    load: dict[str, Any], found: Any,
) -> None:  # fmt: skip
    figures = summaries(
        found, price_per_hour=settings["price_per_hour"], open_loop=load["loop"] == "open"
    )
    for name, arm in arms.items():
        figures[name]["peak_bytes"] = arm.peak_bytes
    result["runs"].append({**load, **figures})
    _save(settings, result, latest=result["runs"][-1])


def _arm(name: str, settings: dict[str, Any]) -> Arm:
    chosen = EngineSettings(
        threads=settings["threads"], dtype=settings["dtype"], device=settings["device"],
        options=settings["options"] or {},
    )  # fmt: skip
    return Arm(
        name, engine=settings["engine"], path=settings[name], settings=chosen,
        python=settings["python"], timeout=settings["timeout"],
    )  # fmt: skip


def _jobs(settings: dict[str, Any], vocabulary: int, *, batch: int) -> list[Job]:
    return make_jobs(_lengths(settings), batch=batch, vocab_size=vocabulary, seed=settings["seed"])


def _lengths(settings: dict[str, Any]) -> list[tuple[int, int]]:
    if settings["lengths"]:
        return read_lengths(settings["lengths"], settings["requests"])
    return draw_lengths(
        settings["requests"], prompt=settings["prompt_tokens"], new=settings["new_tokens"],
        seed=settings["seed"],
    )  # fmt: skip


def _positions(path: str) -> int | None:
    """Positions that the `config.json` in or beside a path states."""
    place = Path(path)
    file = (place if place.is_dir() else place.parent) / "config.json"
    if not file.is_file():
        return None
    config = checkpoint_config(place)
    text = config.get("text_config") or config
    return text.get("max_position_embeddings") or text.get("n_positions")
