"""Load on servers, by existing generators: `vllm bench serve`, GuideLLM, MLPerf's LoadGen.

A server that runs already is named by `url=`; else vLLM's own is started on the loopback for
each model, and ended. The generators' figures are taken as they are.
"""

import json
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compress.evaluate.latency import Record, dollars_per_million
from compress.evaluate.paired import ratios
from compress.scripts.lib.benchmark_tables import size_of
from compress.scripts.lib.load_generators import (
    Figures,
    Generator,
    ServerFailed,
    Target,
    drawn_lengths,
    run_command,
    server_errors,
    warm_up,
    write_prompts,
)
from compress.scripts.lib.load_guidellm import GUIDELLM
from compress.scripts.lib.load_mlperf import MLPERF
from compress.scripts.lib.load_vllm import VLLM
from compress.scripts.lib.vllm_server import peak_bytes, start_server

ANSWER_SECONDS = 10
GENERATORS: dict[str, Generator] = {"vllm": VLLM, "guidellm": GUIDELLM, "mlperf": MLPERF}


def run_servers(
    settings: dict[str, Any], result: dict[str, Any], *, done: Callable[[dict[str, Any]], None]
) -> None:
    """Every load on every server; `done` is called after each, so that what is there is kept.

    The model's figures stand there before the baseline's server is started.

    Raises:
        ServerFailed: a server does not start, refuses, or does not answer in time.
        BadInput: there is no tokenizer to make prompts with.
    """
    # a server that ran before may still keep the prefixes of the same command's last run
    prompts = time.time_ns() % 2**31 if settings["url"] else settings["seed"]
    names = ["model"] if settings["url"] else [n for n in ("model", "baseline") if settings[n]]
    loads = [{"loop": "closed", "concurrency": int(c)} for c in settings["concurrency"]]
    loads += [{"loop": "open", "rate": rate} for rate in settings["rates"]]
    runs: list[dict[str, Any]] = [dict(load) for load in loads]
    sent: list[dict[str, list[Record]]] = [{} for _ in loads]
    for name in names:
        with start_server(name, settings) as (url, process):
            served = served_model(url)
            path = settings[name] or served
            target = Target(url=url, model=served, tokenizer=_tokenizer(path))
            result["arms"][name] = {"path": path, "url": url, "bytes": size_of(path)}
            for number, (load, run) in enumerate(zip(loads, runs, strict=True)):
                # other prompts for each load: a server may keep the prefixes that it has seen
                run["prompt_seed"] = prompts + number
                asked = {**settings, "seed": settings["seed"] + number,
                         "prompt_seed": run["prompt_seed"]}  # fmt: skip
                run[name], sent[number][name] = generate_load(target, load, asked)
                run[name]["peak_bytes"] = peak_bytes(process)
                if name == names[0]:
                    result["runs"].append(run)
                else:
                    run["ratios"] = _ratios(run, sent[number])
                done(run)


def _tokenizer(path: str) -> str:
    return str(Path(path).absolute()) if Path(path).exists() else path


def generate_load(target: Target, load: dict[str, Any], settings: dict[str, Any]) -> Figures:
    """One run of the generator, in our words.

    Raises:
        ServerFailed: requests failed, or the run did not end in time; with the generator's words.
    """
    generator = GENERATORS[settings["generator"]]
    words = {key: value for key, value in load.items() if key != "loop"}
    with tempfile.TemporaryDirectory() as name:
        folder, lengths = Path(name), drawn_lengths(settings)
        write_prompts(
            folder, tokenizer=target.tokenizer, lengths=lengths, seed=settings["prompt_seed"]
        )
        first = write_warm_up(target, folder / "warm_up", lengths, settings)
        warm_up(target, first, timeout=settings["timeout"])
        command = generator.command(target, words, settings, folder)
        run_command(command, url=target.url, timeout=settings["timeout"])
        figures, records = generator.read(folder, target.url)
    figures["dollars_per_million_tokens"] = dollars_per_million(
        figures["tokens_per_second"], settings["price_per_hour"]
    )
    return figures, records


def write_warm_up(
    target: Target, folder: Path, lengths: Sequence[tuple[int, int]], settings: dict[str, Any]
) -> Path:
    """Prompts of the same lengths and other words: those that are measured stay unseen."""
    folder.mkdir()
    write_prompts(
        folder, tokenizer=target.tokenizer, lengths=lengths[: settings["warm_up"]],
        seed=2**31 + settings["prompt_seed"],
    )  # fmt: skip
    return folder


def _ratios(run: dict[str, Any], sent: dict[str, list[Record]]) -> dict[str, Any]:
    """Model over baseline, with intervals over the same requests; none where some had no answer.

    The answered ones are other requests in each arm, and under less load: they do not compare.
    """
    ours, theirs = run["model"], run["baseline"]
    if ours["failed"] or theirs["failed"]:
        return {}
    kinds = {"latency": "latency_ms", "first_token": "first_token_ms", "per_token": "per_token_ms"}
    found: dict[str, Any] = {
        name: {"value": ours[key]["mean"] / theirs[key]["mean"]}
        for name, key in kinds.items() if theirs[key].get("mean")
    }  # fmt: skip
    found |= ratios(sent["model"], sent["baseline"])
    found.pop("throughput", None)  # requests overlap: it is no mean over them
    if run["loop"] == "closed":
        value = ours["tokens_per_second"] / theirs["tokens_per_second"]
        found["throughput"] = {"value": value}
    return found


def served_model(url: str) -> str:
    """The name under which the server offers its model.

    Raises:
        ServerFailed: it is down, refuses, stalls, or is no OpenAI-compatible server.
    """
    try:
        with (
            server_errors(url, seconds=ANSWER_SECONDS),
            urllib.request.urlopen(f"{url}/v1/models", timeout=ANSWER_SECONDS) as answer,
        ):
            return str(json.loads(answer.read())["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ServerFailed(f"{url} is no OpenAI-compatible server: {error!r}") from error
