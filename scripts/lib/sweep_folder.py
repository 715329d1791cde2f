"""Whose a sweep's folders are: one live sweep, one search, and each trial by its words."""

import shutil
import uuid
from pathlib import Path
from typing import Any

from compress.errors import BadInput
from compress.scripts.lib.run_folder import read_json, write_json
from compress.scripts.lib.secrets import masked_words

NOTE = "sweep.json"
TRIAL_NOTE = "trial.json"
LOCK = ".lock"
"""The one that a run takes (`RunFolder`)."""

LOCK_SECONDS = 15.0
"""How long a killed trial's folder may stay held: its loading processes end some seconds later."""


def claim_folder(study: Any, folder: Path) -> None:
    """Notes in the folder which search its trials are of, and in the search where they lie.

    Raises:
        BadInput: the folder holds another search's trials, or the search has its own elsewhere.
    """
    noted = read_json(folder / NOTE, {})
    mine, home = study.user_attrs.get("id"), study.user_attrs.get("run_dir")
    trials = study.get_trials(deepcopy=False)
    if noted and noted.get("study") != mine:
        raise BadInput(
            f"run_dir={folder} holds the trials of another search (sweep {noted.get('sweep')}, "
            f"noted in {folder / NOTE}); give another run_dir="
        )
    left = sorted(path.name for path in folder.glob("trial_*") if path.is_dir())
    if not noted and left and not trials:
        raise BadInput(
            f"run_dir={folder} holds {len(left)} trials that this search did not begin "
            f"({left[0]} ...); give another run_dir="
        )
    if not noted and mine and trials:
        raise BadInput(
            f"run_dir={folder} does not hold the {len(trials)} trials of this search; give the "
            f"folder that does, run_dir={home}, or begin anew with another storage="
        )
    mine = mine or uuid.uuid4().hex
    study.set_user_attr("id", mine)
    study.set_user_attr("run_dir", str(folder.resolve()))
    write_json(folder / NOTE, {
        "schema": 1, "sweep": study.study_name, "study": mine,
        "definition": study.user_attrs.get("definition"),
    })  # fmt: skip


def prepare_trial(place: Path, *, words: list[str], definition: str | None, known: bool) -> bool:
    """Readies a trial's folder; answers whether its run goes on from a checkpoint.

    Args:
        place: the trial's folder; without a checkpoint it is emptied.
        words: what train.py is told in this trial.
        definition: the fingerprint of the search.
        known: the search itself says that it began this trial here: enough where an older version
            left no note.

    Raises:
        BadInput: a live run holds the folder, or what lies there was begun by other words.
    """
    from filelock import FileLock, Timeout

    note = {"schema": 1, "definition": definition, "words": sorted(masked_words(words))}
    resume = False
    if place.exists():
        _refuse_other_words(place, note, known=known)
        lock = FileLock(place / LOCK)
        try:
            with lock.acquire(timeout=LOCK_SECONDS):
                resume = (place / "checkpoints" / "last.ckpt").exists()
                if not resume:
                    shutil.rmtree(place, ignore_errors=True)  # killed before its first checkpoint
        except Timeout:
            raise BadInput(
                f"{place} is in use by a live run; wait until it ends, or stop it, then start the "
                "same command again"
            ) from None
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / TRIAL_NOTE, note)
    return resume


def _refuse_other_words(place: Path, note: dict[str, Any], *, known: bool) -> None:
    began = read_json(place / TRIAL_NOTE)
    if began == note or (began is None and known):
        return
    said = began.get("words", []) if began else []
    other = sorted({*said} ^ {*note["words"]})
    why = (
        f"{place} lies there already, with no {TRIAL_NOTE} that says by which words it was begun"
        if began is None
        else f"{place} was begun by another search"
        if not other
        else f"{place} was begun by other words:\n"
        + "\n".join(f"  {word} {'then' if word in said else 'now'}" for word in other)
    )
    raise BadInput(f"{why}\nGive another run_dir= for this sweep")
