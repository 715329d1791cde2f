"""The search itself, by Optuna: a study that survives a kill, its sampler and its pruner."""

import hashlib
import json
import logging
from itertools import product
from pathlib import Path
from typing import Any

from compress.errors import BadInput
from compress.scripts.lib.sweep_definition import Parameter, Sweep


def open_study(sweep: Sweep, *, storage: str, seed: int, fixed: dict[str, Any]) -> Any:
    """The study of this sweep in this storage: a new one, or the one that was stopped.

    Args:
        sweep: what is varied.
        storage: a file of Optuna's journal, or the URL of a database (`sqlite:///...`).
        seed: of what is drawn; the number of trials so far enters too, so that a resumed search
            does not draw again what it has drawn.
        fixed: settings that every trial shares; another set is another study.

    Raises:
        BadInput: Optuna is not installed, or the storage holds another sweep of this name.
    """
    try:
        import optuna
    except ImportError as error:
        raise BadInput("sweeps need Optuna: pip install 'compress-lm[sweep]'") from error
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(
        study_name=sweep.name, storage=_storage(storage), load_if_exists=True,
        direction=sweep.goal, pruner=_pruner(sweep),
    )  # fmt: skip
    known = fingerprint(sweep, fixed)
    if study.user_attrs.get("definition", known) != known:
        raise BadInput(
            f"{storage} holds a sweep {sweep.name} of other parameters or words; give another "
            "run_dir= (the search is kept there, unless storage= says otherwise)"
        )
    study.set_user_attr("definition", known)
    study.sampler = _sampler(sweep, seed=seed + len(study.trials))
    return study


def fingerprint(sweep: Sweep, fixed: dict[str, Any]) -> str:
    """A hash of all that decides what a trial is."""
    facts = [sweep.method, sweep.metric, sweep.goal, repr(sorted(sweep.parameters.items())),
             repr(sorted(sweep.fixed.items())), sorted(fixed.items())]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]


def suggest(trial: Any, parameters: dict[str, Parameter]) -> dict[str, Any]:
    """A value for each parameter, as plain data."""
    return {name: _suggest(trial, name, parameter) for name, parameter in parameters.items()}


def _suggest(trial: Any, name: str, parameter: Parameter) -> Any:
    if parameter.choices:
        return trial.suggest_categorical(name, parameter.choices)
    low, high = parameter.low, parameter.high
    assert low is not None and high is not None, "a parameter has choices or a range"
    if parameter.integer:
        return trial.suggest_int(name, int(low), int(high))
    if parameter.step and not parameter.logarithmic:
        return trial.suggest_float(name, low, high, step=parameter.step)
    value = trial.suggest_float(name, low, high, log=parameter.logarithmic)
    step = parameter.step
    return float(f"{round(value / step) * step if step else value:.6g}")


def take_up(study: Any) -> int:
    """Queue again the trials that a killed sweep left running; answers how many."""
    from optuna.trial import Trial, TrialState

    left = study.get_trials(states=(TrialState.RUNNING,))
    for trial in left:
        folder = trial.user_attrs.get("folder")
        study.enqueue_trial(trial.params, user_attrs={"folder": folder} if folder else None)
        Trial(study, trial._trial_id).set_user_attr("taken_up", True)
        study.tell(trial.number, state=TrialState.FAIL)
    return len(left)


def finished_trials(study: Any) -> list[Any]:
    """Trials that came to an end of their own: complete, pruned or failed."""
    return [
        t for t in study.get_trials() if t.state.is_finished() and not t.user_attrs.get("taken_up")
    ]


def queue_next(study: Any, sweep: Sweep) -> None:
    """Queues a grid's next combination, unless a stopped trial waits already."""
    from optuna.trial import TrialState

    # Optuna's GridSampler stops its study from within, which a study that is asked cannot do
    if sweep.method != "grid" or study.get_trials(states=(TrialState.WAITING,)):
        return
    names, known = list(sweep.parameters), len(study.trials)
    for values in product(*(sweep.parameters[name].choices for name in names)):
        study.enqueue_trial(dict(zip(names, values, strict=True)), skip_if_exists=True)
        if len(study.trials) > known:
            return


def _storage(storage: str) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in storage:
        return RDBStorage(storage)
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(storage))


def _sampler(sweep: Sweep, *, seed: int) -> Any:
    from optuna import samplers

    if sweep.method in ("grid", "random"):  # a grid's trials are queued: nothing is drawn
        return samplers.RandomSampler(seed=seed)
    # constant_liar: trials that run beside this one count as bad, so that they spread
    return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=5)


def _pruner(sweep: Sweep) -> Any:
    """W&B's hyperband stops a run at each bracket unless it is among the best 1/eta so far."""
    from optuna import pruners

    stop = sweep.early_terminate
    if not stop:
        return pruners.NopPruner()
    eta = int(stop.get("eta", 3))
    first = stop.get("min_iter") or max(1, int(stop["max_iter"]) // eta ** int(stop.get("s", 1)))
    return pruners.SuccessiveHalvingPruner(min_resource=int(first), reduction_factor=eta)
