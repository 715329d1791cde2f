"""What the load generators of servers have in common: the requests, and how one is run.

`load_vllm`, `load_guidellm` and `load_mlperf` each know one generator's command line and figures.
All send the same requests: their lengths are drawn here, and their prompts lie in one file.
"""

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import BadInput, CompressError
from compress.evaluate.latency import Record
from compress.evaluate.workload import draw_lengths, read_lengths

PROMPTS_FILE = "prompts.jsonl"
Figures = tuple[dict[str, Any], list[Record]]
"""A run's figures in our words, and its requests, in the order in which they were listed."""


class ServerFailed(CompressError):
    """The server is down, refuses, or stalls."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server under load.

    Args:
        url: where it listens.
        model: the name under which it offers the model.
        tokenizer: a folder, or a name on the hub.
    """

    url: str
    model: str
    tokenizer: str


@dataclass(frozen=True, kw_only=True)
class Generator:
    """One generator.

    Args:
        command: (target, load, settings, folder) -> a command line that leaves its files in
            `folder`, where the prompts lie.
        read: (folder, url) -> figures.
        missing: settings -> how to install it; None where it is there.
    """

    command: Callable[[Target, dict[str, Any], dict[str, Any], Path], list[str]]
    read: Callable[[Path, str], Figures]
    missing: Callable[[dict[str, Any]], str | None]


def is_program(path: str | Path) -> bool:
    """Whether a file is there that may be run."""
    return Path(path).is_file() and os.access(path, os.X_OK)


def drawn_lengths(settings: dict[str, Any]) -> list[tuple[int, int]]:
    """Prompt and new tokens of each request, from the range or the file of lengths."""
    if settings["lengths"]:
        found = read_lengths(settings["lengths"], settings["requests"])
    else:
        found = draw_lengths(
            settings["requests"], prompt=settings["prompt_tokens"], new=settings["new_tokens"],
            seed=settings["seed"],
        )  # fmt: skip
    return [(prompt, max(new, 1)) for prompt, new in found]


def write_prompts(
    folder: Path, *, tokenizer: str, lengths: Sequence[tuple[int, int]], seed: int
) -> None:
    """Random texts of these lengths, one a line, in the columns that generators read.

    Raises:
        BadInput: the tokenizer does not load.
    """
    import numpy as np
    from transformers import AutoTokenizer

    from compress.export.reload import quiet

    try:
        with quiet():
            words = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{tokenizer} has no tokenizer, which prompts need: {reason}") from error
    draw = np.random.default_rng(seed)
    usual = _whole_words(words, draw)
    lines = []
    for number, (prompt, new) in enumerate(lengths):
        text, count = _text(words, lambda n: draw.choice(usual, n).tolist(), prompt)
        lines.append({"prompt": text, "output_tokens": new, "output_tokens_count": new,
                      "prompt_tokens_count": count, "number": number})  # fmt: skip
    (folder / PROMPTS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _whole_words(words: Any, draw: Any, *, pool: int = 4096) -> list[int]:
    """Tokens that begin a word and are read back as they were written: they do not merge."""
    ids = sorted(set(range(len(words))) - set(words.all_special_ids))
    some = draw.choice(ids, min(pool, len(ids)), replace=False).tolist()
    starts = [i for i, t in zip(some, words.convert_ids_to_tokens(some), strict=True)
              if t.startswith(("\u0120", "\u2581"))]  # fmt: skip
    for found in (starts, some):
        texts = [words.decode([i]) for i in found]
        read = words(texts, add_special_tokens=False)["input_ids"] if texts else []
        same = [i for i, back in zip(found, read, strict=True) if back == [i]]
        if same:
            return same
    return some


def _text(words: Any, draw: Callable[[int], list[int]], length: int) -> tuple[str, int]:
    """A text of about `length` tokens; decoded tokens may merge when they are read again."""
    ids: list[int] = []
    for _ in range(8):
        ids = [*ids, *draw(max(length - len(ids), 0))][:length]
        text = words.decode(ids)
        ids = words(text, add_special_tokens=False)["input_ids"]
        if len(ids) == length:
            break
    return text, len(ids)


def warm_up(target: Target, folder: Path, *, timeout: float) -> None:
    """Ask for the folder's prompts, one after the other: what is refused is told at once.

    Raises:
        ServerFailed: the server is down, refuses (with its words), or stalls.
    """
    for line in (folder / PROMPTS_FILE).read_text().splitlines():
        job = json.loads(line)
        asked = {"model": target.model, "prompt": job["prompt"], "max_tokens": job["output_tokens"]}
        request = urllib.request.Request(
            f"{target.url}/v1/completions", data=json.dumps(asked).encode(),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        with server_errors(target.url, seconds=timeout):
            urllib.request.urlopen(request, timeout=timeout).read()


@contextmanager
def server_errors(url: str, *, seconds: float) -> Iterator[None]:
    """What can happen to a request, as `ServerFailed`: down, refusing, stalling are told apart."""
    try:
        yield
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace").strip()[:300]
        raise ServerFailed(f"{url} refuses: HTTP {error.code} {error.reason} {said}") from error
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise ServerFailed(f"{url} stalls: no answer within {seconds} s") from error
        raise ServerFailed(f"{url} is down: {reason}") from error


def run_command(command: Sequence[str], *, url: str, timeout: float) -> None:
    """A generator's run to its end; with it end the processes that it started.

    Raises:
        ServerFailed: it fails, with its last words, or does not end in time.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={"HF_HUB_OFFLINE": "1", **kept}, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise ServerFailed(
            f"{url} stalls: the load did not end within timeout={timeout} s"
        ) from error
    finally:
        end_group(process)
    if process.returncode:
        last = " | ".join(said.strip().splitlines()[-4:])
        raise ServerFailed(f"the load generator failed on {url}: {last}")


def end_group(process: "subprocess.Popen[str]", *, patience: float = 0.0) -> None:
    """End a process that leads a group, and whatever it started and left."""
    if patience and process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def none_answered(url: str, reason: str = "") -> ServerFailed:
    """The error where every request failed."""
    because = f": {reason}" if reason else ""
    return ServerFailed(f"{url} refuses: none of the requests was answered{because}")
