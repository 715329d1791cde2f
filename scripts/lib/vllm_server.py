"""vLLM's own server for one model: started on the loopback, watched, and ended."""

import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.scripts.lib.load_generators import ServerFailed, end_group

Started = tuple[str, "subprocess.Popen[str] | None"]


@contextmanager
def start_server(name: str, settings: dict[str, Any]) -> Iterator[Started]:
    """The given server, or vLLM's own for this model until the block ends; its address and process.

    Raises:
        ServerFailed: it ends, or does not answer within `timeout=`; with its last words.
    """
    if settings["url"]:
        yield str(settings["url"]).rstrip("/"), None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
           "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(settings["threads"])}
    with tempfile.TemporaryFile(mode="w+") as log:
        process = subprocess.Popen(
            server_command(settings[name], settings, port=port), stdout=log, stderr=log,
            env={**own, **kept, **threads}, start_new_session=True, text=True,
        )  # fmt: skip
        try:
            _wait(process, url, log, seconds=settings["timeout"])
            yield url, process
        finally:
            end_group(process, patience=30)


def server_command(model: str, settings: dict[str, Any], *, port: int) -> list[str]:
    """How vLLM's server is started; prompts are computed anew, as in the other engines."""
    options = {"enforce_eager": settings["device"] == "cpu", "enable_prefix_caching": False,
               "dtype": settings["dtype"] or "bfloat16", "host": "127.0.0.1",
               **(settings["options"] or {})}  # fmt: skip
    path = str(Path(model).absolute()) if Path(model).exists() else model
    flat = [word for key, value in options.items() for word in _words(key, value)]
    return [settings["python"], "-m", "vllm.entrypoints.openai.api_server", "--model", path,
            "--port", str(port), *flat]  # fmt: skip


def _words(key: str, value: Any) -> list[str]:
    """An option in the words of vLLM's command line.

    >>> _words("enforce_eager", True), _words("enforce_eager", False), _words("max_model_len", 8)
    (['--enforce-eager'], ['--no-enforce-eager'], ['--max-model-len', '8'])
    """
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def peak_bytes(process: "subprocess.Popen[str] | None") -> int | None:
    """The most that the server's processes held, added up; None for a server of someone else's."""
    if process is None:
        return None
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) != process.pid:
                continue
            lines = (folder / "status").read_text().splitlines()
        except OSError:  # it has ended since
            continue
        found += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    return found or None


def _wait(process: "subprocess.Popen[str]", url: str, log: Any, *, seconds: float) -> None:
    until = time.monotonic() + seconds
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
    raise ServerFailed(f"vLLM's server did not answer within timeout={seconds} s")
