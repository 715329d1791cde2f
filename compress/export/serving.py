"""A real client's word on a checkpoint: vLLM beside transformers, prompt by prompt.

vLLM lives in a virtual environment of its own (`make test-serving` builds it); it is run there as
a subprocess, with JSON files as the only link.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.errors import BadInput, CompressError
from compress.export.reload import quiet

WORKER = Path(__file__).with_name("vllm_worker.py")
TIMEOUT_S = 900


class ServingFailed(CompressError):
    """VLLM could not load or run the checkpoint, or its answers are not transformers'."""


@dataclass(frozen=True, kw_only=True)
class ServingCheck:
    """How vLLM's answers compare with transformers' on one checkpoint.

    Attributes:
        mean_abs_diff: of log-probabilities over all prompt tokens, in nats.
        max_abs_diff: of the same.
        same_tokens: share of greedily generated tokens that agree up to the first that differs.
        generated: token ids for each prompt, from vLLM.
    """

    mean_abs_diff: float
    max_abs_diff: float
    same_tokens: float
    prompts: int
    positions: int
    vllm_version: str
    generated: list[list[int]]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return asdict(self)


def check_serving(
    model: str | Path,
    *,
    prompts: Sequence[Sequence[int]],
    python: str | Path,
    dtype: str = "bfloat16",
    new_tokens: int = 16,
) -> ServingCheck:
    """Score the same prompts with vLLM and with transformers, and generate greedily with both.

    Args:
        model: folder of an exported checkpoint.
        prompts: token ids, at least two a prompt.
        python: the interpreter of the environment that has vLLM.
        dtype: what both compute in; vLLM's int4 kernels on CPUs want bfloat16.
        new_tokens: length of each continuation, at least 1.

    Raises:
        BadInput: no such folder or interpreter, or a prompt that is too short.
        ServingFailed: vLLM exits with an error; its last lines are in the message.
    """
    return check_servings(
        [model], prompts=prompts, python=python, dtype=dtype, new_tokens=new_tokens
    )[0]


def check_servings(
    models: Sequence[str | Path],
    *,
    prompts: Sequence[Sequence[int]],
    python: str | Path,
    dtype: str = "bfloat16",
    new_tokens: int = 16,
) -> list[ServingCheck]:
    """`check_serving` of several checkpoints in one vLLM process, whose import takes longest."""
    absent = [str(model) for model in models if not (Path(model) / "config.json").is_file()]
    if absent or not models:
        raise BadInput(f"no checkpoint folder (without config.json): {', '.join(absent) or 'none'}")
    if not Path(python).exists():
        raise BadInput(f"{python} does not exist; `make test-serving` builds the environment")
    if not prompts or min(len(prompt) for prompt in prompts) < 2 or new_tokens < 1:
        raise BadInput("needs at least one prompt of two tokens, and new_tokens of 1 or more")
    shared = {"prompts": [list(p) for p in prompts], "dtype": dtype, "new_tokens": new_tokens}
    asked = [{"model": str(Path(model).absolute()), **shared} for model in models]
    checks = []
    for model, theirs in zip(models, run_vllm(asked, python=python), strict=True):
        scores, tokens = transformers_answers(model, prompts, dtype=dtype, new_tokens=new_tokens)
        checks.append(_compare(theirs, scores, tokens))
    return checks


def run_vllm(requests: Sequence[dict[str, Any]], *, python: str | Path) -> list[dict[str, Any]]:
    """Send requests to vLLM in its own environment and wait for the responses.

    Raises:
        ServingFailed: it exits with an error or takes over a quarter of an hour.
    """
    # the parent's paths would bring this environment's packages into the other
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with tempfile.TemporaryDirectory() as folder:
        asked, said = Path(folder, "request.json"), Path(folder, "response.json")
        asked.write_text(json.dumps(list(requests)))
        command = [str(python), str(WORKER), str(asked), str(said)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_S, env=kept, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ServingFailed(f"vLLM did not answer within {TIMEOUT_S} s") from error
        if done.returncode or not said.exists():
            last = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
            models = ", ".join(str(request["model"]) for request in requests)
            raise ServingFailed(f"vLLM failed on {models}:\n{last}")
        answers: list[dict[str, Any]] = json.loads(said.read_text())
        return answers


@torch.no_grad()
def transformers_answers(
    model: str | Path, prompts: Sequence[Sequence[int]], *, dtype: str, new_tokens: int
) -> tuple[list[Tensor], list[list[int]]]:
    """Log-probabilities of the prompts' tokens and greedy continuations, from transformers."""
    from transformers import AutoModelForCausalLM

    with quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(model), dtype=getattr(torch, dtype))
        loaded.eval()
        answers = [_answer(loaded, list(prompt), new_tokens) for prompt in prompts]
    return [score for score, _ in answers], [tokens for _, tokens in answers]


def _answer(model: Any, prompt: list[int], new_tokens: int) -> tuple[Tensor, list[int]]:
    tokens = torch.tensor([prompt])
    log_probs = model(tokens).logits[0].float().log_softmax(-1)
    scores = log_probs[:-1].gather(-1, tokens[0, 1:, None]).squeeze(-1)
    output = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False,
        max_new_tokens=new_tokens, pad_token_id=0,
    )  # fmt: skip
    return scores, output[0, len(prompt) :].tolist()


def _compare(theirs: dict[str, Any], scores: list[Tensor], tokens: list[list[int]]) -> ServingCheck:
    gaps = torch.cat(
        [
            (torch.tensor(said) - ours).abs()
            for said, ours in zip(theirs["log_probs"], scores, strict=True)
        ]
    )
    agreed = sum(_common(a, b) for a, b in zip(theirs["tokens"], tokens, strict=True))
    return ServingCheck(
        mean_abs_diff=float(gaps.mean()),
        max_abs_diff=float(gaps.max()),
        same_tokens=agreed / max(sum(len(t) for t in tokens), 1),
        prompts=len(scores),
        positions=len(gaps),
        vllm_version=str(theirs["version"]),
        generated=theirs["tokens"],
    )


def _common(one: list[int], other: list[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
