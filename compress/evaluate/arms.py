"""One side of a comparison: a model in an engine, in a process that is started, asked and ended."""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from compress.errors import BadInput, CompressError
from compress.evaluate.engines import EngineMissing, EngineSettings, require
from compress.evaluate.latency import Record
from compress.evaluate.workload import Job

VLLM_HOST = Path(__file__).with_name("engines") / "vllm_host.py"
OPEN_SECONDS = 600.0


class EngineFailed(CompressError):
    """The engine died, or gave no answer in time."""


class Arm:
    """A model in an engine of its own process; use it in a `with` block.

    Args:
        name: `model` or `baseline`, for messages.
        engine: a word of `engines.REQUIRED`, or `vllm`.
        path: what the engine reads.
        settings: threads, dtype, device.
        python: the interpreter of vLLM's environment; unused by the others.
        timeout: seconds that one block of jobs may take.

    Raises:
        EngineMissing: the engine is not installed: with the command.
        EngineFailed: it dies, or does not answer.
        BadInput: it cannot read the model.
    """

    def __init__(
        self, name: str, *, engine: str, path: str, settings: EngineSettings,
        python: str = ".venv-serve/bin/python", timeout: float = 600.0,
    ) -> None:  # fmt: skip
        """Starts the process and waits for the model."""
        self.name, self.engine, self.path, self.timeout = name, engine, path, timeout
        self.log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self.process, self.answers = self._start(python)
        settled = asdict(settings) | {"options": dict(settings.options)}
        place = str(Path(path).absolute()) if Path(path).exists() else path
        asked = {"open": {"engine": engine, "path": place, **settled}}
        try:
            self.facts = self._ask(asked, OPEN_SECONDS)
        except BaseException:
            self.close()
            raise
        self.peak_bytes = int(self.facts["peak_bytes"])

    def _start(self, python: str) -> tuple["subprocess.Popen[str]", Any]:
        reading, writing = os.pipe()
        if self.engine == "vllm":
            check_vllm(python)
            command = [python, str(VLLM_HOST), str(writing)]
            kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        else:
            require(self.engine)
            command = [sys.executable, "-m", "compress.evaluate.host", str(writing)]
            kept = dict(os.environ)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self.log, stderr=self.log, text=True,
            pass_fds=(writing,), env=kept,
        )  # fmt: skip
        os.close(writing)
        return process, os.fdopen(reading)

    def serve(self, jobs: Sequence[Job], arrivals: Sequence[float] | None = None) -> list[Record]:
        """Serve jobs, one after the other or as they arrive."""
        plain = [asdict(job) for job in jobs]
        asked = {"serve": {"jobs": plain, "arrivals": list(arrivals) if arrivals else None}}
        answer = self._ask(asked, self.timeout)
        self.peak_bytes = max(self.peak_bytes, int(answer["peak_bytes"]))
        return [
            Record(
                arrival=record["arrival"], moments=tuple(record["moments"]),
                sequences=len(job.prompts), prompt_tokens=len(job.prompts[0]),
                written=job.new_tokens if self.facts["generates"] else 0,
            )
            for job, record in zip(jobs, answer["records"], strict=True)
        ]  # fmt: skip

    def _ask(self, asked: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise EngineFailed(f"{self.name}: engine={self.engine} died: {self._last()}") from None
        ready, _, _ = select.select([self.answers], [], [], seconds)
        if not ready:
            raise EngineFailed(
                f"{self.name}: engine={self.engine} did not answer within {seconds:.0f} s; "
                "give fewer or shorter requests, or more time: timeout="
            )
        line = self.answers.readline()
        if not line:
            raise EngineFailed(f"{self.name}: engine={self.engine} died: {self._last()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BadInput(f"{self.name}: {answer['error']}")
        return answer

    def _last(self) -> str:
        self.process.wait(timeout=30)
        self.log.seek(0)
        return " | ".join(self.log.read().splitlines()[-5:]) or "it printed nothing"

    def close(self) -> None:
        """End the process that was started here."""
        self.process.kill()
        self.process.wait()
        self.answers.close()
        self.log.close()

    def __enter__(self) -> "Arm":
        """The arm itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Ends the process."""
        self.close()


def check_vllm(python: str) -> None:
    """Refuse where vLLM's environment is not there.

    Raises:
        EngineMissing: with the command that makes it.
    """
    if not Path(python).exists():
        raise EngineMissing(
            f"engine=vllm is not installed (there is no {python}): make test-serving, or on a GPU "
            "python -m venv .venv-serve && .venv-serve/bin/pip install vllm; elsewhere: python="
        )
