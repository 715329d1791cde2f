"""Serves one model in one engine to a benchmark, in a process of its own: its memory is its own.

    python -m compress.evaluate.host FD

Requests come as lines of JSON on standard input, answers go as such lines to the file descriptor
FD: engines print what they like on standard output. `vllm_host` speaks the same.
"""

import json
import os
import resource
import sys
import time
from typing import Any

import torch

from compress.errors import CompressError
from compress.evaluate.engines import Engine, EngineSettings, load_engine


def main(descriptor: int) -> None:
    """Answer until the input ends."""
    with os.fdopen(descriptor, "w", buffering=1) as out:
        engine: Engine | None = None
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                if "open" in asked:
                    engine, answer = opened(**asked["open"])
                else:
                    assert engine is not None
                    answer = served(engine, **asked["serve"])
            except CompressError as error:
                answer = {"error": str(error), "kind": type(error).__name__}
            out.write(json.dumps(answer) + "\n")


def opened(engine: str, path: str, **settings: Any) -> tuple[Engine, dict[str, Any]]:
    """The engine with its model, and what it says of itself."""
    torch.set_num_threads(settings.get("threads", 1))
    loaded = load_engine(engine, path, EngineSettings(**settings))
    facts = {"version": loaded.version, "vocab_size": loaded.vocab_size,
             "generates": loaded.generates, "cached": loaded.cached, **memory()}  # fmt: skip
    return loaded, facts


def served(
    engine: Engine, jobs: list[dict[str, Any]], arrivals: list[float] | None
) -> dict[str, Any]:
    """Serve jobs one after the other; with arrivals, none before its time (an open loop)."""
    start, records = time.perf_counter(), []
    for number, job in enumerate(jobs):
        now = time.perf_counter() - start
        arrival = now if arrivals is None else arrivals[number]
        if arrival > now:
            time.sleep(arrival - now)
        moments = moments_of(engine, torch.tensor(job["prompts"]), job["new_tokens"], start)
        records.append({"arrival": arrival, "moments": moments})
    return {"records": records, **memory()}


def moments_of(engine: Engine, tokens_BL: Any, new_tokens: int, start: float) -> list[float]:
    """When each token was there; one moment for a pass without any."""
    moments: list[float] = []

    def note() -> None:
        moments.append(time.perf_counter() - start)

    if engine.generates and new_tokens:
        engine.generate(tokens_BL, new_tokens=new_tokens, on_token=note)
    else:
        engine.forward(tokens_BL)
        note()
    return moments


def memory() -> dict[str, int]:
    """The most bytes that this process, and its share of a GPU, ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in KiB on Linux
    gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return {"peak_bytes": peak, "peak_gpu_bytes": gpu}


if __name__ == "__main__":
    main(int(sys.argv[1]))
