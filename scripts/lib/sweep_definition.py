"""A sweep as its YAML says it: a Weights & Biases definition, read and checked without a server.

Only reading belongs here; which values are tried is up to `sweep_study`, running to `sweep_trials`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from compress.errors import BadInput, did_you_mean
from compress.scripts.lib.targets import ONLY_BY_COMMAND_LINE

KEYS = ("program", "method", "metric", "parameters", "early_terminate", "command", "name",
        "project", "description", "run_cap")  # fmt: skip
COMMAND = ("${env}", "${interpreter}", "${program}", "${args_no_hyphens}")
DISTRIBUTIONS = ("constant", "categorical", "int_uniform", "uniform", "q_uniform",
                 "log_uniform_values", "q_log_uniform_values")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One setting that a sweep varies: some choices, or a range.

    `step` rounds to its multiples; None does not round.
    """

    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    integer: bool = False
    logarithmic: bool = False
    step: float | None = None

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Every choice, or both ends of the range: what a test composes."""
        return self.choices or (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is varied, how, and by which measure trials are compared."""

    name: str
    purpose: str
    program: str
    method: str
    metric: str
    goal: str
    parameters: Mapping[str, Parameter]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    early_terminate: Mapping[str, Any] | None = None
    run_cap: int | None = None
    """The most trials that ever end; None sets no bound."""

    @property
    def grid_size(self) -> int | None:
        """How many combinations there are; None where a parameter is a range."""
        if any(not p.choices for p in self.parameters.values()):
            return None
        return prod(len(p.choices) for p in self.parameters.values())


def list_sweeps() -> dict[str, str]:
    """Each sweep's name and its one-line purpose."""
    return {path.stem: _purpose(path) for path in sorted(_folder().glob("*.yaml"))}


def read_sweep(name: str) -> Sweep:
    """The sweep of this name among the recipes, or in the file of this path.

    Raises:
        BadInput: there is none, or what it says cannot be run here; every problem, one a line.
    """
    import yaml

    path = Path(name) if name.endswith((".yaml", ".yml")) else _folder() / f"{name}.yaml"
    if not path.is_file():
        known = list_sweeps()
        raise BadInput(
            f"sweep={name} is unknown.{did_you_mean(name, list(known))} There are: "
            + ", ".join(known)
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is no YAML: {error}") from error
    return _checked(path, raw)


def _checked(path: Path, raw: Any) -> Sweep:
    raw = raw if isinstance(raw, dict) else {}
    problems = list(_problems(raw))
    parameters: dict[str, Parameter] = {}
    for key, settings in (raw.get("parameters") or {}).items():
        try:
            parameters[key] = _parameter(settings)
        except (BadInput, TypeError, ValueError) as error:
            problems.append(f"parameters.{key}: {error}")
    varied = {k: p for k, p in parameters.items() if len(p.choices) != 1}
    fixed = {k: p.choices[0] for k, p in parameters.items() if k not in varied}
    method = str(raw.get("method"))
    ranges = [k for k, p in varied.items() if not p.choices]
    if method == "grid" and ranges:
        problems.append(f"method: grid cannot walk the range of {', '.join(ranges)}; list values")
    if problems:
        raise BadInput("\n".join(f"{path.name}: {problem}" for problem in problems))
    return Sweep(
        name=path.stem, purpose=_purpose(path), program=raw["program"], method=method,
        metric=raw["metric"]["name"], goal=raw["metric"].get("goal", "minimize"),
        parameters=varied, fixed=fixed,
        early_terminate=raw.get("early_terminate"), run_cap=raw.get("run_cap"),
    )  # fmt: skip


def _problems(raw: Mapping[str, Any]) -> Any:
    for key in raw:
        if key not in KEYS:
            yield f"{key} is no key of a sweep.{did_you_mean(key, KEYS)}"
    for key in ("program", "method", "metric", "parameters"):
        if not raw.get(key):
            yield f"{key} is missing"
    if raw.get("method") not in (None, "grid", "random", "bayes"):
        yield f"method: {raw['method']} is unknown; use grid, random or bayes"
    for key in raw.get("parameters") or {}:
        # a trial's command line would say it, where nobody typed it
        if str(key).lstrip("+~").rpartition(".")[2] in ONLY_BY_COMMAND_LINE:
            yield f"parameters.{key} counts on the command line alone: give it to sweep.py"
    metric = raw.get("metric")
    if metric and not (isinstance(metric, dict) and metric.get("name")):
        yield "metric: a name is missing, such as {name: val/loss, goal: minimize}"
    elif metric and metric.get("goal", "minimize") not in ("minimize", "maximize"):
        yield f"metric: goal {metric['goal']} is unknown; use minimize or maximize"
    if tuple(raw.get("command") or COMMAND) != COMMAND:
        yield f"command: only {list(COMMAND)} passes settings as key=value"
    cap = raw.get("run_cap")
    if cap is not None and (type(cap) is not int or cap < 1):
        yield f"run_cap: {cap} is no number of trials; give one from 1 on, or leave it out"
    stop = raw.get("early_terminate")
    if stop and not (
        stop.get("type") == "hyperband" and ("min_iter" in stop or "max_iter" in stop)
    ):
        yield "early_terminate: give type: hyperband with min_iter, or with max_iter and s"


def _parameter(settings: Any) -> Parameter:
    if not isinstance(settings, dict):
        raise BadInput("a value, values, or min and max are expected")
    if "value" in settings or "values" in settings:
        choices = settings.get("values", [settings.get("value")])
        if not isinstance(choices, list) or not choices:
            raise BadInput("values must be a list that is not empty")
        if "probabilities" in settings:
            raise BadInput("probabilities are not offered: values are drawn evenly")
        return Parameter(choices=tuple(choices))
    low, high = settings.get("min"), settings.get("max")
    if low is None or high is None or not low < high:
        raise BadInput(f"min={low} and max={high} are no range")
    integer = isinstance(low, int) and isinstance(high, int)
    kind = settings.get("distribution", "int_uniform" if integer else "uniform")
    if kind not in DISTRIBUTIONS:
        raise BadInput(f"distribution {kind} is not offered; use {', '.join(DISTRIBUTIONS)}")
    step = settings.get("q", 1) if kind.startswith("q_") else None
    return Parameter(
        low=low, high=high, integer=kind == "int_uniform",
        logarithmic="log" in kind, step=step,
    )  # fmt: skip


def _folder() -> Path:
    from compress.scripts.lib.config import recipes_folder

    return recipes_folder() / "sweep"


def _purpose(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ")), "")
