"""Runs one checkpoint in vLLM and writes what it said as JSON; started by path, in vLLM's own venv.

    python vllm_worker.py REQUEST.json RESPONSE.json

The request is a list, one model each, and so is the response: vLLM's import takes longest.
It imports nothing of this package: the serving environment does not have it.
"""

import gc
import json
import os
import sys
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: an error keeps its traceback
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main(request_path: str, response_path: str) -> None:
    """For each model: load, score and continue the prompts or embed them; write the response."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    # started by path, this file's folder comes first on the path, and it holds a vllm.py
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    with open(request_path) as file:
        requests = json.load(file)
    answers = [run(request) for request in requests]
    with open(response_path, "w") as file:
        json.dump(answers, file)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """The prompts' log-probabilities and greedy continuations, as token ids.

    With `new_tokens` 0 their embeddings instead; the folder then needs a tokenizer.
    """
    import vllm

    prompts: list[list[int]] = request["prompts"]
    longest, writes = max(len(prompt) for prompt in prompts), request["new_tokens"] > 0
    engine = vllm.LLM(
        model=request["model"],
        dtype=request["dtype"],
        enforce_eager=True,
        skip_tokenizer_init=writes,  # to embed, vLLM makes one whatever it is given
        max_model_len=longest + request["new_tokens"],
        max_num_seqs=len(prompts),
        seed=0,
        **request.get("engine", {}),
    )
    answer = _written(engine, prompts, request) if writes else _embedded(engine, prompts)
    del engine
    gc.collect()
    vllm.distributed.cleanup_dist_env_and_memory()  # the next model makes its own groups
    return {"version": vllm.__version__, **answer}


def _written(engine: Any, prompts: list[list[int]], request: dict[str, Any]) -> dict[str, Any]:
    import vllm

    wanted = vllm.SamplingParams(
        temperature=0.0, max_tokens=request["new_tokens"], prompt_logprobs=0, detokenize=False
    )
    outputs = engine.generate(_tokens(prompts), wanted, use_tqdm=False)
    return {
        "log_probs": [_prompt_log_probs(output) for output in outputs],
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
    }


def _embedded(engine: Any, prompts: list[list[int]]) -> dict[str, Any]:
    outputs = engine.embed(_tokens(prompts), use_tqdm=False)
    return {"embeddings": [list(output.outputs.embedding) for output in outputs]}


def _tokens(prompts: list[list[int]]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": prompt} for prompt in prompts]


def _prompt_log_probs(output: Any) -> list[float]:
    """Log-probability of each prompt token but the first, given those before it."""
    tokens = output.prompt_token_ids
    scores = output.prompt_logprobs[1:]
    return [score[token].logprob for token, score in zip(tokens[1:], scores, strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:])
