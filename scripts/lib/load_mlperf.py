"""MLPerf's LoadGen (`mlcommons-loadgen`): its task, and its figures in our words.

A closed loop is its SingleStream, or MultiStream where several are asked at once (it waits for all
of them); an open loop is its Server scenario. Latencies are its own; tokens and requests a second
are counted over its requests, since its summaries count them otherwise in each scenario.
"""

import json
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from compress.evaluate.latency import Record
from compress.scripts.lib.load_generators import (
    PROMPTS_FILE,
    Figures,
    Generator,
    ServerFailed,
    Target,
    is_program,
    none_answered,
)

HOST = Path(__file__).with_name("mlperf_host.py")
TASK_FILE, REQUESTS_FILE, SUMMARY_FILE = "task.json", "requests.json", "mlperf_log_summary.txt"
INSTALL = "pip install mlcommons-loadgen, in an environment that generator_python= names"
KINDS = {
    "first_token_ms": "first token latency",
    "per_token_ms": "time to output token",
    "latency_ms": "latency",
}
MEANS = {
    "first_token_ms": "Mean First Token latency",
    "per_token_ms": "Mean Time per Output Token",
    "latency_ms": "Mean latency",
}


def mlperf_python(settings: dict[str, Any]) -> str | None:
    """The interpreter of an environment that holds LoadGen."""
    named = settings["generator_python"]
    for python in [named] if named else [sys.executable, settings["python"]]:
        if is_program(python) and _holds_loadgen(str(python)):
            return str(python)
    return None


@lru_cache
def _holds_loadgen(python: str) -> bool:
    found = "import importlib.util as u, sys; sys.exit(u.find_spec('mlperf_loadgen') is None)"
    return subprocess.run([python, "-c", found], check=False).returncode == 0


def mlperf_missing(settings: dict[str, Any]) -> str | None:
    """How to install it."""
    return None if mlperf_python(settings) else INSTALL


def mlperf_command(
    target: Target, load: dict[str, Any], settings: dict[str, Any], folder: Path
) -> list[str]:
    """The host of this folder, with a task beside the prompts."""
    lines = [json.loads(line) for line in (folder / PROMPTS_FILE).read_text().splitlines()]
    alone = load.get("concurrency") == 1
    scenario = "Server" if "rate" in load else "SingleStream" if alone else "MultiStream"
    task = {
        "url": target.url, "model": target.model, "scenario": scenario, **load,
        "jobs": [{"prompt": x["prompt"], "new_tokens": x["output_tokens"]} for x in lines],
        "seed": settings["seed"], "timeout": settings["timeout"], "folder": str(folder),
    }  # fmt: skip
    (folder / TASK_FILE).write_text(json.dumps(task))
    return [str(mlperf_python(settings)), str(HOST), str(folder / TASK_FILE)]


def mlperf_read(folder: Path, url: str) -> Figures:
    """LoadGen's summary, and the requests as they were sent."""
    sent = json.loads((folder / REQUESTS_FILE).read_text())
    return mlperf_figures((folder / SUMMARY_FILE).read_text(), sent, url)


def mlperf_figures(summary: str, sent: list[dict[str, Any]], url: str) -> Figures:
    """LoadGen's latencies, and the throughput of its requests.

    Raises:
        ServerFailed: no request was answered, or the summary is of another version.
    """
    answered = [x for x in sent if "error" not in x]
    failed = [x["error"] for x in sent if "error" in x]
    if not answered:
        raise none_answered(url, failed[0] if failed else "")
    start = min(x["start"] for x in answered)
    seconds = max(x["start"] + x["moments"][-1] for x in answered) - start
    figures = {
        "requests": len(answered), "failed": len(failed),
        **{name: _spread(summary, name) for name in KINDS},
        "tokens_per_second": sum(x["tokens"] for x in answered) / seconds,
        "requests_per_second": len(answered) / seconds,
    }  # fmt: skip
    return figures, [_record(x) for x in sorted(answered, key=lambda x: x["index"])]


def _spread(summary: str, name: str) -> dict[str, float]:
    """Mean and percentiles in milliseconds; LoadGen tells nanoseconds."""
    lines = {"mean": re.escape(MEANS[name])}
    lines |= {f"p{q}": rf"{q}\.00 percentile {KINDS[name]}" for q in (50, 95, 99)}
    found = {k: re.search(rf"^{line} \(ns\) *: (\d+)", summary, re.M) for k, line in lines.items()}
    if absent := [lines[key] for key, match in found.items() if match is None]:
        raise ServerFailed(
            f"LoadGen's summary has no {', '.join(absent)}; this reads mlcommons-loadgen 6"
        )
    return {key: int(match[1]) / 1e6 for key, match in found.items() if match is not None}


def _record(sent: dict[str, Any]) -> Record:
    return Record(
        arrival=0.0, moments=tuple(sent["moments"]), sequences=1, prompt_tokens=0,
        written=int(sent["tokens"]),
    )  # fmt: skip


MLPERF = Generator(command=mlperf_command, read=mlperf_read, missing=mlperf_missing)
