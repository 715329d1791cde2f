"""A teacher behind an OpenAI-compatible vLLM server: prompt log-probabilities of token ids.

Legend: B sequences, L positions, n tokens of one row without padding, K entries a position.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from compress.contract import Batch, TopKSignal, Want
from compress.errors import BadInput
from compress.teachers.cache_files import used_positions
from compress.teachers.http_json import JsonClient

BYTES_AN_ENTRY = 400
PROBES = ("The quick brown fox", " naïve café\n", "def f(x):\n    return x**2", "12345 + 67.89")


class ServedTeacher:
    """Asks a server for the K likeliest tokens at every position of every row.

    Start it with `vllm serve MODEL --max-logprobs K`. Rows travel as token ids, without padding.
    The last position of a row has no answer (nothing follows it); no label asks for one.

    Args:
        url: `http://host:port`; `/v1/completions` below it is asked.
        model: the name that the server serves.
        vocab_size: of the student; an id beyond it shows another vocabulary.
        top_k: entries a position; the server's `--max-logprobs` (20 by default) bounds it.
        concurrency: requests in flight from this process; 1 asks row by row.
        timeout: seconds a request may take in all.
        retries: further attempts when it is down, stalls, or says 429 or 5xx.
        backoff: seconds before the second attempt; doubles, with jitter.
        api_key_env: environment variable with the key; None sends none.
        ca_file: authority of a private server's certificate.
        tokenizer: the student's; compared with the server's on a few texts (vLLM's `/tokenize`).

    Raises:
        BadInput: the server is down, does not serve this model, or tokenizes otherwise; or the
            variable named by `api_key_env` is not set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        vocab_size: int,
        top_k: int = 20,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 0.5,
        api_key_env: str | None = None,
        ca_file: str | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Asks once which models are served."""
        self.client = JsonClient(
            url=url, api_key=_key_in(api_key_env), timeout=timeout, retries=retries,
            backoff=backoff, ca_file=ca_file,
        )  # fmt: skip
        self.model = self.name_or_path = model
        self.vocab_size, self.top_k, self.concurrency = vocab_size, top_k, concurrency
        served = self.client.ask("GET", "/v1/models", max_bytes=1 << 20)
        names = _field(served, lambda a: [m["id"] for m in a["data"]], url)
        if model not in names:
            raise BadInput(f"the teacher server {url} serves {names}, not {model!r}")
        if tokenizer is not None:
            self._check_tokenizer(tokenizer)

    def _check_tokenizer(self, tokenizer: Any) -> None:
        for text in PROBES:
            body = {"model": self.model, "prompt": text, "add_special_tokens": False}
            answer = self.client.ask("POST", "/tokenize", body, max_bytes=1 << 20)
            theirs = _field(answer, lambda a: [int(t) for t in a["tokens"]], self.client.url)
            ours = tokenizer.encode(text, add_special_tokens=False)
            if theirs != ours:
                raise BadInput(
                    f"the served teacher tokenizes {text!r} as {theirs[:8]}, the student as "
                    f"{ours[:8]}: serve a teacher of the student's family"
                )

    def signal(self, batch: Batch, want: Want) -> TopKSignal:
        """The server's answer to every row.

        Raises:
            BadInput: features are wanted, or the server fails, refuses or answers nonsense.
        """
        if want.features:
            raise BadInput(
                f"a served teacher gives logits alone, not {', '.join(want.features)}: "
                "use teacher.host=local, deepspeed or cached for features"
            )
        tokens_BL, used_BL = batch["input_ids"].cpu(), used_positions(batch).cpu()
        shape = tuple(tokens_BL.shape)
        found = torch.arange(self.top_k).expand(*shape, -1).clone()
        values = torch.full((*shape, self.top_k), -math.log(self.vocab_size))
        prompts = [row[used].tolist() for row, used in zip(tokens_BL, used_BL, strict=True)]
        for index, answer in enumerate(self._ask_all(prompts)):
            if answer is not None:
                # the entry of token i + 1 is what the teacher says at position i
                places = used_BL[index].nonzero().squeeze(-1)[:-1]
                found[index, places], values[index, places] = answer
        device = batch["input_ids"].device
        return TopKSignal(tokens_BLK=found.to(device), log_probs_BLK=values.to(device))

    def _ask_all(self, prompts: list[list[int]]) -> list[tuple[Tensor, Tensor] | None]:
        pool = ThreadPoolExecutor(max_workers=self.concurrency)
        try:
            asked = [pool.submit(self._ask, prompt) for prompt in prompts]
            return [future.result() for future in asked]
        finally:  # after a failure, what has not begun is not sent
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, prompt: list[int]) -> tuple[Tensor, Tensor] | None:
        if len(prompt) < 2:
            return None
        body = {
            "model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0,
            "prompt_logprobs": self.top_k,
        }  # fmt: skip
        max_bytes = (1 << 20) + len(prompt) * (self.top_k + 1) * BYTES_AN_ENTRY
        answer = self.client.ask("POST", "/v1/completions", body, max_bytes=max_bytes)
        entries = _field(
            answer, lambda a: list(a["choices"][0]["prompt_logprobs"]), self.client.url
        )
        if len(entries) != len(prompt):
            raise BadInput(
                f"the teacher server answers {len(entries)} positions for {len(prompt)} tokens"
            )
        rows = [self._likeliest(entry) for entry in entries[1:]]
        return torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])

    def _likeliest(self, entry: Any) -> tuple[list[int], list[float]]:
        pairs = _field(
            entry, lambda e: [(float(v["logprob"]), int(t)) for t, v in e.items()], self.client.url
        )
        if len(pairs) < self.top_k:
            raise BadInput(
                f"the teacher server gives {len(pairs)} of {self.top_k} log-probabilities a "
                f"position: start it with --max-logprobs {self.top_k}, or lower teacher.top_k"
            )
        # the prompt's own token comes along even where it is none of the likeliest
        best = sorted(pairs, reverse=True)[: self.top_k]
        beyond = [token for _, token in best if not 0 <= token < self.vocab_size]
        if beyond:
            raise BadInput(
                f"the served teacher's token {beyond[0]} is beyond the student's vocabulary of "
                f"{self.vocab_size}: serve a teacher of the student's family"
            )
        if not all(math.isfinite(value) and value <= 1e-3 for value, _ in best):
            raise BadInput(f"the teacher server answers impossible log-probabilities: {best[:3]}")
        return [token for _, token in best], [value for value, _ in best]


def _key_in(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise BadInput(
            f"teacher.served.api_key_env={variable}: this environment variable is not set; set it, "
            "or leave the setting out to send no key"
        )
    return os.environ[variable]


def _field(answer: Any, pick: Any, url: str) -> Any:
    try:
        return pick(answer)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"the teacher server {url} does not answer as vLLM does ({error!r} in "
            f"{str(answer)[:120]}...): it must offer prompt_logprobs on /v1/completions"
        ) from error
