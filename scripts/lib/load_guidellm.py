"""GuideLLM 0.8 (`guidellm run`): its command line, and its figures in our words.

Earlier versions had another command line.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from compress.evaluate.latency import Record
from compress.scripts.lib.load_generators import (
    PROMPTS_FILE,
    Figures,
    Generator,
    ServerFailed,
    Target,
    none_answered,
)

RESULT_FILE = "guidellm.json"
INSTALL = (
    "python -m venv .venv-guidellm && .venv-guidellm/bin/pip install 'guidellm>=0.8', "
    "then generator_python=.venv-guidellm/bin/python"
)


def guidellm_program(settings: dict[str, Any]) -> str | None:
    """The installed program: of the named environment, else of vLLM's, of this one, of the path."""
    named = settings["generator_python"]
    beside = [named] if named else [settings["python"], sys.executable]
    found = [str(Path(python).with_name("guidellm")) for python in beside]
    found = [program for program in found if Path(program).exists()]
    return found[0] if found else None if named else shutil.which("guidellm")


def guidellm_missing(settings: dict[str, Any]) -> str | None:
    """How to install it."""
    return None if guidellm_program(settings) else INSTALL


def guidellm_command(
    target: Target, load: dict[str, Any], settings: dict[str, Any], folder: Path
) -> list[str]:
    """`guidellm run` with the prompts and lengths of the file."""
    kind = (
        {"kind": "concurrent", "streams": load["concurrency"]}
        if "concurrency" in load
        else {"kind": "poisson", "rate": load["rate"]}
    )
    parts = {
        "--backend": {"kind": "openai_http", "target": target.url, "model": target.model,
                      "request_format": "/v1/completions", "timeout": settings["timeout"]},
        "--profile": kind,
        "--constraint": {"kind": "max_requests", "count": settings["requests"]},
        "--data": {"kind": "json_file", "path": folder / PROMPTS_FILE},
        "--tokenizer": {"kind": "hf_auto", "model": target.tokenizer},
        "--seed": {"kind": "static", "value": settings["seed"]},
        "--output": {"kind": "json", "path": folder / RESULT_FILE},
    }  # fmt: skip
    words = [w for option, pairs in parts.items() for w in (option, _pairs(pairs))]
    return [str(guidellm_program(settings)), "run", *words, "--disable-console"]


def _pairs(values: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items())


def guidellm_read(folder: Path, url: str) -> Figures:
    """The file that it wrote.

    Raises:
        ServerFailed: it wrote none.
    """
    file = folder / RESULT_FILE
    if not file.exists():
        raise ServerFailed(f"guidellm measured nothing on {url}: it wrote no result")
    return guidellm_figures(json.loads(file.read_text()), url)


def guidellm_figures(found: dict[str, Any], url: str) -> Figures:
    """What `guidellm run` found in its one benchmark; its latencies are in seconds.

    Raises:
        ServerFailed: no request was answered, or the file is of another version.
    """
    try:
        benchmark = found["benchmarks"][0]
        metrics = benchmark["metrics"]
        latency = metrics["request_latency"]["successful"]
        answered = int(latency["count"])
    except (KeyError, IndexError, TypeError) as error:
        raise ServerFailed(
            f"guidellm wrote no such figures ({error!r}); this reads version 0.8: {INSTALL}"
        ) from error
    requests = benchmark.get("requests", {})
    errored = requests.get("errored") or []
    if not answered:
        raise none_answered(url, str(errored[0]["info"].get("error")) if errored else "")

    def spread(values: dict[str, Any], factor: float = 1.0) -> dict[str, float]:
        ends = {f"p{q}": values["percentiles"][f"p{q}"] for q in (50, 95, 99)}
        return {k: float(v) * factor for k, v in {"mean": values["mean"], **ends}.items()}

    def of(name: str) -> dict[str, Any]:
        told: dict[str, Any] = metrics[name]["successful"]
        return told

    figures = {
        "requests": answered,
        "failed": len(errored),
        "first_token_ms": spread(of("time_to_first_token_ms")),
        "per_token_ms": spread(of("inter_token_latency_ms")),
        "latency_ms": spread(latency, 1000.0),
        "tokens_per_second": float(of("output_tokens_per_second")["mean"]),
        "requests_per_second": float(of("requests_per_second")["mean"]),
    }
    return figures, _records(requests.get("successful") or [])


def _records(requests: list[dict[str, Any]]) -> list[Record]:
    """In the order in which they were sent, which is the file's."""
    rows = sorted(requests, key=lambda request: float(request["request_start_time"]))
    return [_record(row) for row in rows]


def _record(row: dict[str, Any]) -> Record:
    whole = float(row["request_latency"])
    told = row["time_to_first_token_ms"]  # None where no token had a text
    first = whole if told is None else float(told) / 1e3
    written = int(row["output_tokens"] or 0)
    gaps = max(written - 1, 0)
    later = [first + (whole - first) * number / gaps for number in range(1, gaps + 1)]
    return Record(
        arrival=0.0, moments=(first, *later) if later else (whole,), sequences=1,
        prompt_tokens=int(row["prompt_tokens"] or 0), written=written,
    )  # fmt: skip


GUIDELLM = Generator(command=guidellm_command, read=guidellm_read, missing=guidellm_missing)
