"""Command lines of existing load generators, and their figures in our words.

GuideLLM's are those of 0.8 (`guidellm run`); earlier versions had another command line.
"""

import shutil
from pathlib import Path
from typing import Any

from compress.errors import BadInput, CompressError

GUIDELLM = "pip install 'guidellm>=0.8'"

# its command line asks for metadata of a package named vllm, which repackagings lack
BENCH = (
    "from vllm.utils.argparse_utils import FlexibleArgumentParser as P; "
    "from vllm.benchmarks.serve import add_cli_args, main; "
    "p = P(); add_cli_args(p); main(p.parse_args())"
)


class ServerFailed(CompressError):
    """The server is down, refuses, or stalls."""


def vllm_command(
    url: str, model: str, load: dict[str, Any], settings: dict[str, Any], file: Path
) -> list[str]:
    """`vllm bench serve` with random prompts of the range's mean length and its spread."""
    low, high = settings["prompt_tokens"]
    mean = (low + high) // 2
    words = {
        "--backend": "openai", "--base-url": url, "--endpoint": "/v1/completions",
        "--model": model, "--served-model-name": model, "--dataset-name": "random",
        "--random-input-len": mean, "--random-output-len": max(settings["new_tokens"][1], 1),
        "--random-range-ratio": round((high - low) / (high + low), 3),
        "--num-prompts": settings["requests"], "--num-warmups": settings["warm_up"],
        "--seed": settings["seed"], "--percentile-metrics": "ttft,tpot,itl,e2el",
        "--metric-percentiles": "50,95,99", "--result-dir": file.parent,
        "--result-filename": file.name, "--request-rate": load.get("rate", "inf"),
    }  # fmt: skip
    if settings["model"]:
        words["--tokenizer"] = str(Path(settings["model"]).absolute())
    if "concurrency" in load:
        words["--max-concurrency"] = load["concurrency"]
    flat = [str(part) for pair in words.items() for part in pair]
    return [settings["python"], "-c", BENCH, *flat, "--save-result", "--ignore-eos",
            "--disable-tqdm"]  # fmt: skip


def vllm_figures(found: dict[str, Any], url: str) -> dict[str, Any]:
    """What `vllm bench serve` wrote.

    Raises:
        ServerFailed: no request was answered.
    """
    if not found.get("completed"):
        raise ServerFailed(f"{url} refuses: none of the requests was answered")

    def spread(kind: str) -> dict[str, float]:
        names = {"mean": f"mean_{kind}_ms", **{f"p{q}": f"p{q}_{kind}_ms" for q in (50, 95, 99)}}
        return {name: float(found[key]) for name, key in names.items() if key in found}

    return {
        "requests": found["completed"], "failed": found.get("failed", 0),
        "first_token_ms": spread("ttft"), "per_token_ms": spread("tpot"),
        "latency_ms": spread("e2el"), "tokens_per_second": found["output_throughput"],
        "requests_per_second": found["request_throughput"],
    }  # fmt: skip


def guidellm_command(
    url: str, model: str, load: dict[str, Any], settings: dict[str, Any], file: Path
) -> list[str]:
    """`guidellm run` with the same load.

    Raises:
        BadInput: it is not installed.
    """
    program = shutil.which("guidellm") or str(Path(settings["python"]).with_name("guidellm"))
    if not Path(program).exists():
        raise BadInput(f"generator=guidellm is not installed: {GUIDELLM}")
    low, high = settings["prompt_tokens"]
    tokenizer = str(Path(settings["model"]).absolute()) if settings["model"] else model
    kind = (
        {"kind": "concurrent", "streams": load["concurrency"]}
        if "concurrency" in load
        else {"kind": "poisson", "rate": load["rate"]}
    )
    parts = {
        "--backend": {"kind": "openai_http", "target": url, "model": model},
        "--profile": kind,
        "--constraint": {"kind": "max_requests", "count": settings["requests"]},
        "--data": {"kind": "synthetic_text", "prompt_tokens": (low + high) // 2,
                   "prompt_tokens_min": low, "prompt_tokens_max": high,
                   "output_tokens": max(settings["new_tokens"][1], 1)},
        "--tokenizer": {"kind": "hf_auto", "model": tokenizer},
        "--output": {"kind": "json", "path": file},
    }  # fmt: skip
    words = [w for option, pairs in parts.items() for w in (option, _pairs(pairs))]
    return [program, "run", *words, "--disable-console"]


def _pairs(values: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items())


def guidellm_figures(found: dict[str, Any], url: str) -> dict[str, Any]:
    """What `guidellm run` wrote of its one benchmark; its latencies are in seconds.

    Raises:
        ServerFailed: no request was answered, or the file is of another version.
    """
    try:
        metrics = found["benchmarks"][0]["metrics"]
        latency = metrics["request_latency"]["successful"]
        answered = int(latency["count"])
    except (KeyError, IndexError, TypeError) as error:
        raise ServerFailed(
            f"guidellm wrote no such figures ({error!r}); this reads version 0.8: {GUIDELLM}"
        ) from error
    if not answered:
        raise ServerFailed(f"{url} refuses: none of the requests was answered")

    def spread(values: dict[str, Any], factor: float = 1.0) -> dict[str, float]:
        ends = {f"p{q}": values["percentiles"][f"p{q}"] for q in (50, 95, 99)}
        return {k: float(v) * factor for k, v in {"mean": values["mean"], **ends}.items()}

    def of(name: str) -> dict[str, Any]:
        told: dict[str, Any] = metrics[name]["successful"]
        return told

    return {
        "requests": answered,
        "failed": int(metrics["request_latency"].get("errored", {}).get("count", 0)),
        "first_token_ms": spread(of("time_to_first_token_ms")),
        "per_token_ms": spread(of("inter_token_latency_ms")),
        "latency_ms": spread(latency, 1000.0),
        "tokens_per_second": float(of("output_tokens_per_second")["mean"]),
        "requests_per_second": float(of("requests_per_second")["mean"]),
    }
