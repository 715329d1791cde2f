"""`vllm bench serve`: its command line, and its figures in our words."""

import json
import subprocess
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from compress.evaluate.latency import Record
from compress.scripts.lib.load_generators import (
    PROMPTS_FILE,
    Figures,
    Generator,
    Target,
    is_program,
    none_answered,
)

RESULT_FILE = "vllm.json"
INSTALL = (
    "make test-serving makes .venv-serve; on a GPU: python -m venv .venv-serve && "
    ".venv-serve/bin/pip install vllm"
)

# its command line asks for metadata of a package named vllm, which repackagings lack
BENCH = (
    "from vllm.utils.argparse_utils import FlexibleArgumentParser as P; "
    "from vllm.benchmarks.serve import add_cli_args, main; "
    "p = P(); add_cli_args(p); main(p.parse_args())"
)


def vllm_command(
    target: Target, load: dict[str, Any], settings: dict[str, Any], folder: Path
) -> list[str]:
    """Its own client, with the prompts and lengths of the file."""
    words = {
        "--backend": "openai", "--base-url": target.url, "--endpoint": "/v1/completions",
        "--model": target.model, "--served-model-name": target.model,
        "--tokenizer": target.tokenizer, "--dataset-name": "custom",
        "--dataset-path": folder / PROMPTS_FILE, "--custom-output-len": -1,
        "--num-prompts": settings["requests"], "--num-warmups": 0,
        "--seed": settings["seed"], "--percentile-metrics": "ttft,tpot,itl,e2el",
        "--metric-percentiles": "50,95,99", "--result-dir": folder,
        "--result-filename": RESULT_FILE, "--request-rate": load.get("rate", "inf"),
        "--temperature": 0,
    }  # fmt: skip
    if "concurrency" in load:
        words["--max-concurrency"] = load["concurrency"]
    flat = [str(part) for pair in words.items() for part in pair]
    return [settings["python"], "-c", BENCH, *flat, "--save-result", "--save-detailed",
            "--ignore-eos", "--disable-tqdm", "--disable-shuffle",
            "--skip-chat-template"]  # fmt: skip


def vllm_read(folder: Path, url: str) -> Figures:
    """The file that it wrote."""
    return vllm_figures(json.loads((folder / RESULT_FILE).read_text()), url)


def vllm_figures(found: dict[str, Any], url: str) -> Figures:
    """What `vllm bench serve` found.

    Raises:
        ServerFailed: no request was answered.
    """
    errors = [error for error in found.get("errors", []) if error]
    if not found.get("completed"):
        raise none_answered(url, errors[0].strip().splitlines()[-1] if errors else "")

    def spread(kind: str) -> dict[str, float]:
        names = {"mean": f"mean_{kind}_ms", **{f"p{q}": f"p{q}_{kind}_ms" for q in (50, 95, 99)}}
        return {name: float(found[key]) for name, key in names.items() if key in found}

    figures = {
        "requests": found["completed"], "failed": found.get("failed", 0),
        "first_token_ms": spread("ttft"), "per_token_ms": spread("tpot"),
        "latency_ms": spread("e2el"), "tokens_per_second": found["output_throughput"],
        "requests_per_second": found["request_throughput"],
    }  # fmt: skip
    return figures, _records(found)


def _records(found: dict[str, Any]) -> list[Record]:
    rows = zip(*(found.get(k, []) for k in ("ttfts", "itls", "input_lens", "output_lens")),
               strict=True)  # fmt: skip
    return [
        Record(arrival=0.0, moments=tuple(accumulate([first, *gaps])), sequences=1,
               prompt_tokens=int(read), written=int(written))
        for first, gaps, read, written in rows if written
    ]  # fmt: skip


def vllm_missing(settings: dict[str, Any]) -> str | None:
    """How to make the environment that holds it."""
    python = str(settings["python"])
    if not is_program(python):
        there = "is no program" if Path(python).exists() else "does not exist"
        return f"{python} {there}: {INSTALL}"
    absent = _absent(python)
    return f"{python} lacks {absent}: {python} -m pip install {absent}" if absent else None


@lru_cache
def _absent(python: str) -> str:
    """What `vllm bench serve` needs and vLLM alone does not bring."""
    asked = (
        "import importlib.util as u; "
        "print(*[n for n in ('vllm', 'pandas') if u.find_spec(n) is None])"
    )
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
    return "vllm pandas" if done.returncode else done.stdout.strip()


VLLM = Generator(command=vllm_command, read=vllm_read, missing=vllm_missing)
