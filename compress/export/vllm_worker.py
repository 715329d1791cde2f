"""Runs one checkpoint in vLLM and writes what it said as JSON; started by path, in vLLM's own venv.

    python vllm_worker.py REQUEST.json RESPONSE.json

It imports nothing of this package: the serving environment does not have it.
"""

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
    """Load, score the prompts, generate greedily, write the response."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    with open(request_path) as file:
        request = json.load(file)
    answers = run(request)
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
    return {
        "version": vllm.__version__,
        "log_probs": [_prompt_log_probs(output) for output in outputs],
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
    }


def _prompt_log_probs(output: Any) -> list[float]:
    """Log-probability of each prompt token but the first, given those before it."""
    tokens = output.prompt_token_ids
    scores = output.prompt_logprobs[1:]
    return [score[token].logprob for token, score in zip(tokens[1:], scores, strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:])
