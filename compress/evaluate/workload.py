"""What is asked of a model under test: prompts of drawn or recorded lengths, and when they come.

Legend: B sequences that are computed together, L prompt tokens of each.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Job:
    """Sequences of one length, computed together.

    Args:
        prompts: token ids (B, L).
        new_tokens: written after each; 0 for models whose pass is the whole answer.
    """

    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int


def draw_lengths(
    count: int, *, prompt: tuple[int, int], new: tuple[int, int], seed: int = 0
) -> list[tuple[int, int]]:
    """Lengths of prompts and answers, each uniform over its range, ends included.

    Raises:
        BadInput: a range that is empty, or a prompt without a token.
    """
    for name, (low, high), least in (("prompt", prompt, 1), ("new", new, 0)):
        if not least <= low <= high:
            raise BadInput(f"{name}_tokens={low}-{high}: from {least} on, low end first")
    generator = np.random.default_rng(seed)
    prompts = generator.integers(prompt[0], prompt[1], size=count, endpoint=True)
    answers = generator.integers(new[0], new[1], size=count, endpoint=True)
    return list(zip(prompts.tolist(), answers.tolist(), strict=True))


def refuse_too_long(lengths: Sequence[tuple[int, int]], positions: Mapping[str, int]) -> None:
    """Refuse sequences that end after the last position of an arm.

    Args:
        lengths: tokens of each prompt and of its answer.
        positions: how many a sequence may have, by the arm's name.

    Raises:
        BadInput: names each arm whose positions do not hold the longest sequence.
    """
    longest = max(prompt + new for prompt, new in lengths)
    short = [f"{name} has {limit}" for name, limit in positions.items() if limit < longest]
    if short:
        raise BadInput(
            f"the longest sequence has {longest:,} tokens, prompt and answer: {', '.join(short)} "
            "positions; lower prompt_tokens and new_tokens, or shorten what lengths= names"
        )


def read_lengths(path: str | Path, count: int) -> list[tuple[int, int]]:
    """Lengths of a recorded load: jsonl of {"prompt_tokens", "new_tokens"}, used over and over.

    Raises:
        BadInput: the file cannot be read, or a line is something else.
    """
    try:
        lines = [line for line in Path(path).read_text().splitlines() if line.strip()]
        items = [json.loads(line) for line in lines]
        found = [(int(item["prompt_tokens"]), int(item["new_tokens"])) for item in items]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f'lengths={path}: expected lines {{"prompt_tokens": 64, "new_tokens": 32}}: {error!r}'
        ) from error
    if not found or min(p for p, _ in found) < 1 or min(n for _, n in found) < 0:
        raise BadInput(f"lengths={path}: no line, or one without a prompt token")
    return [found[i % len(found)] for i in range(count)]


def make_jobs(
    lengths: Sequence[tuple[int, int]], *, batch: int, vocab_size: int, seed: int = 0
) -> list[Job]:
    """One job for each pair of lengths, of random tokens: speed does not depend on which."""
    generator = np.random.default_rng(seed)
    return [
        Job(
            prompts=tuple(
                tuple(row) for row in generator.integers(0, vocab_size, (batch, prompt)).tolist()
            ),
            new_tokens=new,
        )
        for prompt, new in lengths
    ]


def poisson_arrivals(count: int, *, rate: float, seed: int = 0) -> list[float]:
    """Seconds at which requests come, independently of each other, `rate` a second on average.

    An open loop: they come whether or not the server keeps up, as users do.

    Raises:
        BadInput: a rate that is not positive.
    """
    if not rate > 0:
        raise BadInput(f"rates={rate}: must be positive")
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=count)
    return np.cumsum(gaps).tolist()  # type: ignore[no-any-return]
