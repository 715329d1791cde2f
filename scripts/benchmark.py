"""How fast a model is: `python scripts/benchmark.py model=... baseline=... engine=vllm`."""

import sys

HELP = """\
How fast a model is, in a real engine, beside the original: one JSON and a plot.

  python scripts/benchmark.py model=PATH [baseline=PATH] [engine=transformers] [key=value ...]

Often used:
  engine=transformers|onnxruntime|eager|inductor|tvm|vllm|server
  requests=16  rounds=4  concurrency=[1,8]   closed loop: latency, and throughput in batches
  rates=[1,2,4]                              open loop: Poisson arrivals, latency against load
  prompt_tokens=32-128  new_tokens=32  lengths=FILE.jsonl
  price_per_hour=2.5                         dollars a million tokens
  threads=2  dtype=bfloat16  device=cuda  options={max_model_len: 512}
  engine=server url=http://127.0.0.1:8000    a running server; generator=vllm, guidellm or mlperf
  out=benchmark.json
"""


def main(words: list[str] | None = None) -> int:
    """Measures and prints; answers the exit status (2 also for a failed engine)."""
    from compress.scripts.lib.settings import program

    return program(words, usage=HELP, run=_run, stopped="What was measured stands in out=.")


def _run(words: list[str]) -> None:
    from compress.errors import BadInput
    from compress.scripts.lib.benchmark_settings import checked
    from compress.scripts.lib.settings import read_settings

    settings = read_settings(words, name="benchmark", required=())  # url= may stand for the model
    if problems := checked(settings):
        raise BadInput("\n".join(problems))
    from compress.scripts.lib.benchmark_run import run  # heavy: only once all is sound

    run(settings, words)


if __name__ == "__main__":
    sys.exit(main())
