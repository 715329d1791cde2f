"""Load on servers, by existing generators: `vllm bench serve`, or GuideLLM where it is installed.

A server that runs already is named by `url=`; else vLLM's own is started on the loopback for
each model, and ended. The generators' figures are taken as they are.
"""

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.scripts.lib.load_generators import (
    ServerFailed,
    guidellm_command,
    guidellm_figures,
    vllm_command,
    vllm_figures,
)

START_SECONDS = 300
ANSWER_SECONDS = 10


def run_servers(
    settings: dict[str, Any], result: dict[str, Any], *, done: Callable[[dict[str, Any]], None]
) -> None:
    """Every load on every server; `done` is called after each, so that what is there is kept.

    The model's figures stand there before the baseline's server is started.

    Raises:
        ServerFailed: a server does not start, refuses, or does not answer in time.
        BadInput: the generator is not installed.
    """
    names = ["model"] if settings["url"] else [n for n in ("model", "baseline") if settings[n]]
    loads = [{"loop": "closed", "concurrency": int(c)} for c in settings["concurrency"]]
    loads += [{"loop": "open", "rate": rate} for rate in settings["rates"]]
    runs: list[dict[str, Any]] = [dict(load) for load in loads]
    for name in names:
        with _server(name, settings) as url:
            served = served_model(url)
            result["arms"][name] = {"path": settings[name] or served, "url": url}
            for run in runs:
                run[name] = generate_load(url, served, run, settings)
                if name == names[0]:
                    result["runs"].append(run)
                else:
                    run["ratios"] = _ratios(run["model"], run["baseline"])
                done(run)


def served_model(url: str) -> str:
    """The name under which the server offers its model.

    Raises:
        ServerFailed: it is down, refuses, stalls, or is no OpenAI-compatible server.
    """
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=ANSWER_SECONDS) as answer:
            return str(json.loads(answer.read())["data"][0]["id"])
    except urllib.error.HTTPError as error:
        raise ServerFailed(f"{url} refuses: HTTP {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise ServerFailed(f"{url} stalls: no answer within {ANSWER_SECONDS} s") from error
    except (urllib.error.URLError, OSError) as error:
        if isinstance(getattr(error, "reason", None), TimeoutError):
            raise ServerFailed(f"{url} stalls: no answer within {ANSWER_SECONDS} s") from error
        raise ServerFailed(f"{url} is down: {getattr(error, 'reason', error)}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ServerFailed(f"{url} is no OpenAI-compatible server: {error!r}") from error


def generate_load(
    url: str, model: str, load: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """One run of the generator, in our words.

    Raises:
        ServerFailed: requests failed, or the run did not end in time; with the generator's words.
        BadInput: the generator is not installed.
    """
    make = {"vllm": vllm_command, "guidellm": guidellm_command}[settings["generator"]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = make(url, model, load, settings, file)
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=settings["timeout"], check=False,
                env={**kept, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ServerFailed(
                f"{url} stalls: the load did not end within timeout={settings['timeout']} s"
            ) from error
        if done.returncode or not file.exists():
            last = " | ".join((done.stdout + done.stderr).strip().splitlines()[-4:])
            raise ServerFailed(f"{settings['generator']} failed on {url}: {last}")
        found = json.loads(file.read_text())
    read = {"vllm": vllm_figures, "guidellm": guidellm_figures}[settings["generator"]]
    return read(found, url)


def _ratios(model: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    pairs = {
        "latency": (model["latency_ms"], baseline["latency_ms"], "mean"),
        "first_token": (model["first_token_ms"], baseline["first_token_ms"], "mean"),
        "throughput": (model, baseline, "tokens_per_second"),
    }
    return {name: {"value": a[key] / b[key]} for name, (a, b, key) in pairs.items() if b.get(key)}


@contextmanager
def _server(name: str, settings: dict[str, Any]) -> Iterator[str]:
    """The given server, or vLLM's own for this model until the block ends."""
    if settings["url"]:
        yield str(settings["url"]).rstrip("/")
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = [
        word for key, value in (settings["options"] or {}).items()
        for word in (f"--{key.replace('_', '-')}", str(value))
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
           "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
           "OMP_NUM_THREADS": str(settings["threads"])}  # fmt: skip
    command = [settings["python"], "-m", "vllm.entrypoints.openai.api_server", "--model",
               str(Path(settings[name]).absolute()), "--host", "127.0.0.1", "--port", str(port),
               "--dtype", settings["dtype"] or "bfloat16", "--enforce-eager", *options]  # fmt: skip
    with tempfile.TemporaryFile(mode="w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**own, **kept}, start_new_session=True
        )
        try:
            _wait(process, url, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Any) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            log.seek(0)
            last = " | ".join(log.read().strip().splitlines()[-4:])
            raise ServerFailed(f"vLLM's server ended before it answered: {last}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise ServerFailed(f"vLLM's server did not answer within {START_SECONDS} s")
