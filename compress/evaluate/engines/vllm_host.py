"""`compress.evaluate.host` for vLLM, started by path in vLLM's own environment.

    python vllm_host.py FD

It imports nothing of this package: that environment does not have it. Jobs of several sequences
are handed to vLLM's scheduler together; with arrivals, each is handed over when it comes, or after
the one before where a pass is the whole answer.
"""

import json
import os
import resource
import sys
import time
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: its memory is what is measured
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class Host:
    """One model in vLLM."""

    def __init__(
        self, engine: str, path: str, *, threads: int = 1, dtype: str | None = None,
        device: str = "cpu", options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Loads it; `options` go to `vllm.LLM`."""
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        import vllm

        self.vllm, self.count = vllm, 0
        with open(os.path.join(path, "config.json")) as file:
            config = json.load(file)
        self.task = task_of((config.get("architectures") or [""])[0])
        self.generates = self.task == "causal_lm"
        runner = {} if self.generates else {"runner": "pooling"}
        settings = {"enforce_eager": device == "cpu", "seed": 0,
                    # to embed, vLLM makes one whatever it is given
                    "skip_tokenizer_init": self.task != "embedding",
                    "dtype": dtype or "bfloat16", "enable_prefix_caching": False}  # fmt: skip
        self.llm = vllm.LLM(model=path, **{**settings, **runner, **(options or {})})
        self.facts = {"version": vllm.__version__, "vocab_size": config["vocab_size"],
                      "generates": self.generates, "cached": True}  # fmt: skip

    def serve(
        self, jobs: list[dict[str, Any]], arrivals: list[float] | None
    ) -> list[dict[str, Any]]:
        """Moments of each job's tokens."""
        self.start = time.perf_counter()
        if not self.generates:
            times: list[float | None] = [*arrivals] if arrivals else [None] * len(jobs)
            return [self._pooled(job, due) for job, due in zip(jobs, times, strict=True)]
        if arrivals is None:
            return [self._serve_one(job) for job in jobs]
        return self._open_loop(jobs, arrivals)

    def _now(self) -> float:
        return time.perf_counter() - self.start

    def _pooled(self, job: dict[str, Any], arrival: float | None) -> dict[str, Any]:
        if arrival is None:
            arrival = self._now()
        time.sleep(max(arrival - self._now(), 0.0))
        ask = self.llm.embed if self.task == "embedding" else self.llm.classify
        ask([{"prompt_token_ids": prompt} for prompt in job["prompts"]], use_tqdm=False)
        return {"arrival": arrival, "moments": [self._now()]}

    def _serve_one(self, job: dict[str, Any]) -> dict[str, Any]:
        arrival = self._now()
        self._add(job)
        moments: list[float] = []
        engine = self.llm.llm_engine
        while engine.has_unfinished_requests():
            outputs = engine.step()
            if outputs:
                moments.append(self._now())
        # all sequences of a job have one length: they advance together, but for the first token
        return {"arrival": arrival, "moments": moments[-max(job["new_tokens"], 1) :]}

    def _open_loop(self, jobs: list[dict[str, Any]], arrivals: list[float]) -> list[dict[str, Any]]:
        engine, waiting = self.llm.llm_engine, list(range(len(jobs)))
        moments: list[list[float]] = [[] for _ in jobs]
        owner: dict[str, int] = {}
        while waiting or engine.has_unfinished_requests():
            while waiting and arrivals[waiting[0]] <= self._now():
                number = waiting.pop(0)
                owner.update(dict.fromkeys(self._add(jobs[number]), number))
            if not engine.has_unfinished_requests():
                time.sleep(max(arrivals[waiting[0]] - self._now(), 0.0))
                continue
            for output in engine.step():
                if output.outputs[0].token_ids:
                    moments[owner[output.request_id]].append(self._now())
        return [{"arrival": a, "moments": m} for a, m in zip(arrivals, moments, strict=True)]

    def _add(self, job: dict[str, Any]) -> list[str]:
        wanted = self.vllm.SamplingParams(
            temperature=0.0, max_tokens=max(job["new_tokens"], 1), ignore_eos=True,
            detokenize=False,
        )  # fmt: skip
        names = []
        for prompt in job["prompts"]:
            self.count += 1
            names.append(str(self.count))
            self.llm.llm_engine.add_request(names[-1], {"prompt_token_ids": prompt}, wanted)
        return names


def task_of(architecture: str) -> str:
    """As `compress.evaluate.models` names it, which is out of reach here."""
    if architecture.endswith("Model") and not architecture.endswith("LMHeadModel"):
        return "embedding"
    classifies = architecture.endswith("ForSequenceClassification")
    return "classification" if classifies else "causal_lm"


def memory() -> dict[str, int]:
    """The most bytes that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in KiB on Linux
    return {"peak_bytes": peak, "peak_gpu_bytes": 0}


def main(descriptor: int) -> None:
    """Answer until the input ends."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    # started by path, this file's folder comes first, and it holds modules named as packages are
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    with os.fdopen(descriptor, "w", buffering=1) as out:
        host: Host | None = None
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                if "open" in asked:
                    host = Host(**asked["open"])
                    answer: dict[str, Any] = {**host.facts, **memory()}
                else:
                    assert host is not None
                    answer = {"records": host.serve(**asked["serve"]), **memory()}
            except Exception as error:  # whatever vLLM raises belongs to the one who asked
                lines = (str(error).strip() or type(error).__name__).splitlines()
                answer = {"error": " ".join(lines[:4]), "kind": type(error).__name__}
            out.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
