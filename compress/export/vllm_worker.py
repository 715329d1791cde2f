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
    """For each model: load, score the prompts, generate greedily; then write the response."""
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
    """The prompts' log-probabilities and greedy continuations, as token ids."""
    import vllm

    prompts: list[list[int]] = request["prompts"]
    longest = max(len(prompt) for prompt in prompts)
    engine = vllm.LLM(
        model=request["model"],
        dtype=request["dtype"],
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=longest + request["new_tokens"],
        max_num_seqs=len(prompts),
        seed=0,
        **request.get("engine", {}),
    )
    wanted = vllm.SamplingParams(
        temperature=0.0, max_tokens=request["new_tokens"], prompt_logprobs=0, detokenize=False
    )
    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], wanted, use_tqdm=False
    )
    answer = {
        "version": vllm.__version__,
        "log_probs": [_prompt_log_probs(output) for output in outputs],
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
    }
    del engine, outputs
    gc.collect()
    vllm.distributed.cleanup_dist_env_and_memory()  # the next model makes its own groups
    return answer


def _prompt_log_probs(output: Any) -> list[float]:
    """Log-probability of each prompt token but the first, given those before it."""
    tokens = output.prompt_token_ids
    scores = output.prompt_logprobs[1:]
    return [score[token].logprob for token, score in zip(tokens[1:], scores, strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:])
