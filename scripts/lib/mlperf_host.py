"""MLPerf's load generator against an OpenAI-compatible server, started by path in its environment.

    python mlperf_host.py TASK.json

LoadGen decides when each request goes; this sends it and says when tokens were there. It imports
nothing of this package: that environment may hold `mlcommons-loadgen` alone. TASK.json holds
`url`, `model`, `jobs`, `scenario`, `concurrency` or `rate`, `seed`, `timeout` and `folder`; there
LoadGen's own log and `requests.json` are written.
"""

import array
import json
import os
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

WORKERS = 256
"""Requests on their way at once; in an open loop more would wait here, unseen by the server."""


class Sender:
    """Sends requests to the server and tells LoadGen of their tokens."""

    def __init__(self, task: dict[str, Any], loadgen: Any) -> None:
        """`task` as in TASK.json."""
        self.task, self.loadgen = task, loadgen
        self.pool = ThreadPoolExecutor(WORKERS)
        self.lock, self.records = threading.Lock(), []

    def issue(self, samples: Any) -> None:
        """LoadGen's call: send these now, and come back at once."""
        for sample in samples:
            self.pool.submit(self._answer, sample.id, sample.index, time.perf_counter())

    def _answer(self, number: int, index: int, start: float) -> None:
        record: dict[str, Any] = {"index": index, "start": start}
        try:
            moments, tokens = self.send(index, lambda: self._tell(number, first=True))
            record.update(moments=[moment - start for moment in moments], tokens=tokens)
        except Exception as error:  # a request that fails must not stop the others
            record["error"] = f"{type(error).__name__}: {error}"
            tokens = 1
        with self.lock:
            self.records.append(record)
        self._tell(number, tokens=tokens)

    def _tell(self, number: int, *, first: bool = False, tokens: int = 1) -> None:
        held = array.array("B", b"0")
        address, _ = held.buffer_info()
        response = self.loadgen.QuerySampleResponse(number, address, 1, tokens)
        tell = self.loadgen.FirstTokenComplete if first else self.loadgen.QuerySamplesComplete
        tell([response])

    def send(self, index: int, on_first: Any = None) -> tuple[list[float], int]:
        """One request: when each part of its answer came, and the tokens in all."""
        job, moments, told = self.task["jobs"][index], [], 0
        asked = {"model": self.task["model"], "prompt": job["prompt"], "temperature": 0.0,
                 "max_tokens": job["new_tokens"], "ignore_eos": True, "stream": True,
                 "stream_options": {"include_usage": True}}  # fmt: skip
        request = urllib.request.Request(
            f"{self.task['url']}/v1/completions", data=json.dumps(asked).encode(),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=self.task["timeout"]) as answer:
            for line in answer:
                part = line.decode().removeprefix("data:").strip()
                if not part or part == "[DONE]":
                    continue
                found = json.loads(part)
                told = int((found.get("usage") or {}).get("completion_tokens", told))
                if found.get("choices"):
                    moments.append(time.perf_counter())
                    if len(moments) == 1 and on_first is not None:
                        on_first()
        if not moments:
            raise ValueError("the server answered without a token")
        return moments, told or len(moments)


def settings(task: dict[str, Any], loadgen: Any) -> Any:
    """LoadGen's settings: as many requests as there are jobs, however short the run."""
    wanted, count = loadgen.TestSettings(), len(task["jobs"])
    wanted.scenario = getattr(loadgen.TestScenario, task["scenario"])
    wanted.mode = loadgen.TestMode.PerformanceOnly
    wanted.min_duration_ms, wanted.min_query_count = 0, count
    wanted.use_token_latencies = True
    if task["scenario"] == "Server":
        wanted.server_target_qps = task["rate"]
        wanted.ttft_latency = wanted.tpot_latency = wanted.server_target_latency_ns = 1 << 50
    elif task["scenario"] == "MultiStream":
        wanted.multi_stream_samples_per_query = task["concurrency"]
        wanted.min_query_count = -(-count // task["concurrency"])
    wanted.max_query_count = wanted.min_query_count
    wanted.performance_issue_unique = True  # else it draws with replacement
    wanted.schedule_rng_seed = wanted.sample_index_rng_seed = task["seed"] + 1
    wanted.qsl_rng_seed = task["seed"] + 1
    return wanted


def main(path: str) -> None:
    """Run the task."""
    import mlperf_loadgen

    with open(path) as file:
        task = json.load(file)
    sender, count = Sender(task, mlperf_loadgen), len(task["jobs"])
    under_test = mlperf_loadgen.ConstructSUT(sender.issue, lambda: None)
    library = mlperf_loadgen.ConstructQSL(count, count, lambda _: None, lambda _: None)
    log, output = mlperf_loadgen.LogSettings(), mlperf_loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = task["folder"], False
    log.log_output, log.enable_trace = output, False
    mlperf_loadgen.StartTestWithLogSettings(
        under_test, library, settings(task, mlperf_loadgen), log
    )
    mlperf_loadgen.DestroyQSL(library)
    mlperf_loadgen.DestroySUT(under_test)
    sender.pool.shutdown()
    with open(os.path.join(task["folder"], "requests.json"), "w") as file:
        json.dump(sender.records, file)


if __name__ == "__main__":
    main(sys.argv[1])
