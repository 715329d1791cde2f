"""Running the trials of a sweep: one process each, watched for bad ones, stopped and gone on with."""  # noqa: E501

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import BadInput
from compress.scripts.lib.report_data import finite, pick, read_metrics, read_report
from compress.scripts.lib.secrets import masked_words
from compress.scripts.lib.sweep_definition import Sweep
from compress.scripts.lib.sweep_folder import prepare_trial
from compress.scripts.lib.sweep_study import finished_trials, queue_next, suggest

POLL_SECONDS = 0.5
GRACE_SECONDS = 120.0
"""How long a trial may take to save itself after it was asked to stop."""


@dataclass
class Running:
    """A trial under way."""

    trial: Any
    folder: Path
    process: subprocess.Popen[bytes]
    reported: int = 0
    pruned: bool = False


def trial_words(sweep: Sweep, values: dict[str, Any], fixed: dict[str, str]) -> list[str]:
    """What train.py is told in one trial, as `wandb agent` would write it.

    >>> from types import SimpleNamespace
    >>> trial_words(SimpleNamespace(fixed={"recipe": "qat"}), {"seed": 1}, {"recipe": "distill"})
    ['recipe=distill', 'seed=1']
    """
    said = {**sweep.fixed, **values, **fixed}
    return [f"{key}={_word(value)}" for key, value in said.items()]


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def run_trials(
    study: Any,
    sweep: Sweep,
    *,
    folder: Path,
    trials: int | None,
    parallel: int,
    fixed: dict[str, str],
    say: Callable[[str], None],
) -> None:
    """Runs trials until `trials` have ended, `parallel` at a time.

    A grid and the sweep's `run_cap` bound them too; where `trials` is None, they alone do.

    Raises:
        BadInput: a trial's folder is in use, or was begun by other words.
        KeyboardInterrupt: after every running trial saved its checkpoint; the study goes on from
            there with the same command.
    """
    size = sweep.grid_size if sweep.method == "grid" else None
    goal = min(n for n in (trials, size, sweep.run_cap) if n)
    running: list[Running] = []
    try:
        while True:
            running = [one for one in running if not _finish(study, sweep, one, say)]
            done = len(finished_trials(study))
            while len(running) < min(parallel, goal - done):
                running.append(_begin(study, sweep, folder, fixed, parallel, say))
            if not running:
                return
            for one in running:
                _watch(one, sweep, say)
            time.sleep(POLL_SECONDS)
    except BaseException:
        _stop_all(running)  # their trials stay open in the study: the next call takes them up
        raise


def _begin(
    study: Any, sweep: Sweep, folder: Path, fixed: dict[str, str], parallel: int,
    say: Callable[[str], None],
) -> Running:  # fmt: skip
    queue_next(study, sweep)
    trial = study.ask()
    values = suggest(trial, dict(sweep.parameters))
    begun = trial.user_attrs.get("folder")
    place = folder / (begun or f"trial_{trial.number:03d}")
    name, words = place.name, trial_words(sweep, values, fixed)
    resume = prepare_trial(
        place, words=words, definition=study.user_attrs.get("definition"), known=bool(begun)
    )
    trial.set_user_attr("folder", name)  # last: the study knows no folder that was refused
    trial.set_user_attr("words", masked_words(words))
    words = [*words, f"run_dir={place}", *(["ckpt=last"] if resume else [])]
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*_program(sweep), *words], stdout=log, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env=_environment(sweep, parallel),
            preexec_fn=_die_with_parent,
        )  # fmt: skip
    varied = " ".join(f"{k}={v}" for k, v in values.items())
    say(f"{name} {'goes on' if resume else 'begins'}: {varied}")
    return Running(trial=trial, folder=place, process=process)


def _program(sweep: Sweep) -> list[str]:
    """The sweep's program by this interpreter; outside a checkout, the installed one."""
    if Path(sweep.program).is_file():
        return [sys.executable, sweep.program]
    module = f"compress.scripts.{Path(sweep.program).stem}"
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise BadInput(f"program: there is no {sweep.program}")
    return [sys.executable, "-m", module]


def _environment(sweep: Sweep, parallel: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // parallel)
    defaults = {"WANDB_MODE": "offline"}
    if parallel > 1:
        defaults["OMP_NUM_THREADS"] = str(threads)
    return {**defaults, **os.environ, "WANDB_RUN_GROUP": sweep.name}


def _die_with_parent() -> None:
    """A trial whose sweep was killed would hold its folder's lock against the next sweep."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgrp()  # Ctrl-C of the terminal reaches the sweep alone, which then asks its trials
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def _watch(
    one: Running, sweep: Sweep, say: Callable[[str], None], *, may_stop: bool = True
) -> None:
    """Tells the study each new value of the metric; stops a trial that is not worth going on."""
    values = _measured(one, sweep)
    for value in values[one.reported :]:
        one.reported += 1
        one.trial.report(value, step=one.reported)
        if may_stop and not one.pruned and one.trial.should_prune():
            one.pruned = True
            one.process.send_signal(signal.SIGINT)
            say(f"{one.folder.name} is stopped early: {sweep.metric} {value:.4f}")


def _measured(one: Running, sweep: Sweep) -> list[float]:
    curves = read_metrics(one.folder).curves.get("train", {})
    return [value for _, value in curves.get(sweep.metric, [])]


def _finish(study: Any, sweep: Sweep, one: Running, say: Callable[[str], None]) -> bool:
    """Whether the trial's process has ended; if so, the study is told how."""
    from optuna.trial import TrialState

    code = one.process.poll()
    if code is None:
        return False
    _watch(one, sweep, say, may_stop=False)  # it ran to its end: its result counts
    value = None if code or one.pruned else result_of(one.folder, sweep.metric)
    if one.pruned:
        study.tell(one.trial, state=TrialState.PRUNED)
    elif value is not None:
        study.tell(one.trial, value)
        say(f"{one.folder.name} ends: {sweep.metric} {value:.4f}")
    else:
        why = why_it_failed(one.folder.with_name(f"{one.folder.name}.log"))
        one.trial.set_user_attr("error", why)
        study.tell(one.trial, state=TrialState.FAIL)
        say(f"{one.folder.name} FAILED (status {code}): {why}")
    return True


def result_of(folder: Path, metric: str) -> float | None:
    """The metric of a finished trial: what was exported, or the last value that was logged."""
    if metric == "val/loss":
        try:
            return finite(pick(read_report(folder), "quality.compressed"))
        except BadInput:
            return None
    points = read_metrics(folder).curves.get("train", {}).get(metric, [])
    return points[-1][1] if points else None


def why_it_failed(log: Path) -> str:
    """The error that a trial ended with, as its log names it.

    A plain list of what offends may follow the error: its own line says more than the last.
    """
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    named = [line for line in lines if re.match(r"[A-Z]\w+: ", line)]
    return (named or lines or ["no output"])[-1]


def _stop_all(running: list[Running]) -> None:
    for one in running:
        one.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    for one in running:
        try:
            one.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()


def command_of(words: list[str], program: str) -> str:
    """The command that repeats one trial, quoted for a shell."""
    return shlex.join(["python", program, *words])
