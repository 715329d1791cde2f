"""Going on with a run: where it lies, and that the command asks for the very same training."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.errors import BadInput
from compress.scripts.lib.targets import check_resolved

TRAINING = ("data", "teacher", "student", "training", "callbacks", "task", "seed")
"""What decides the weights. The rest says how long, where and how loudly."""

ELSEWHERE = (
    "teacher.dtype",
    "teacher.host",
    "teacher.cache",
    "teacher.deepspeed",
    "teacher.served",
)
"""Parts of these that may change: where a teacher runs (`settle_precision` sees to the dtype)."""

SHOWN = 80
"""Characters of a value in a message: a whole callback is longer."""


def run_of(checkpoint: str | Path) -> Path | None:
    """The run folder that a checkpoint lies in; None where it lies alone."""
    folder = Path(checkpoint).absolute().parent.parent
    return folder if (folder / "config.yaml").is_file() else None


def resume_path(ckpt: str, checkpoints: Path) -> Path | None:
    """The checkpoint to go on from; None where `last` means a run that ended before its first one.

    Raises:
        BadInput: a checkpoint that is named does not exist.
    """
    path = checkpoints / "last.ckpt" if ckpt == "last" else Path(ckpt)
    if not path.exists() and ckpt == "last":
        return None
    if not path.exists():
        raise BadInput(f"ckpt={ckpt}: there is no checkpoint at {path}")
    return path


def refuse_other_training(config: Any, run_dir: Path) -> None:
    """Refuse to go on with a run by settings that would train something else.

    Callbacks from outside may come and go; settings that the run did not know have their defaults.

    Raises:
        BadInput: lists every setting that differs, with both values; the record is damaged; or
            the checkpoint belongs to another run than the folder's.
    """
    file = run_dir / "config.yaml"
    if config.ckpt is None or not file.is_file():
        return
    owner = None if config.ckpt == "last" else run_of(config.ckpt)
    if owner is not None and owner != run_dir.absolute():
        raise BadInput(
            f"ckpt={config.ckpt} is of the run {owner}, and run_dir={run_dir} holds another one: "
            "leave run_dir= out to go on there, or name a new folder"
        )
    began, asked = _recorded(file), _plain(config)
    other = [
        f"  {key}: {_short(old)} in the run, {_short(new)} now"
        for key, old, new in differences(began, asked)
    ]
    if other:
        raise BadInput(
            f"run_dir={run_dir} was trained with other settings:\n" + "\n".join(other) + "\n"
            "Say them as the run began, or start anew in another run_dir. Where only a path moved, "
            f"put the new one into {file}"
        )


def differences(began: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(setting, recorded, asked) of all that decides the weights and is not the same.

    >>> differences({"seed": 0, "ckpt": None}, {"seed": 1, "ckpt": "last"})
    [('seed', 0, 1)]
    """
    found: list[tuple[str, Any, Any]] = []
    for group in TRAINING:
        old, new = began.get(group), asked.get(group)
        if group == "callbacks":
            old, new = _ours(old), _ours(new)
        found += _compared(group, old, new, known=group in began)
    return found


def _compared(key: str, old: Any, new: Any, *, known: bool) -> Iterator[tuple[str, Any, Any]]:
    if key in ELSEWHERE or old == new or not known:
        return
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        yield key, old, new
        return
    for name in {**old, **new}:
        # a callback that is new changes the training; a setting that is new has its default
        told = name in old or key == "callbacks"
        yield from _compared(f"{key}.{name}", old.get(name), new.get(name), known=told)


def _short(value: Any) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + " ..."


def _ours(callbacks: Any) -> dict[str, Any]:
    own = {k: v for k, v in (callbacks or {}).items() if isinstance(v, Mapping)}
    return {k: v for k, v in own.items() if str(v.get("_target_", "")).startswith("compress.")}


def _plain(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from compress.scripts.lib.secrets import masked

    return masked(OmegaConf.to_container(config, resolve=True))  # type: ignore[no-any-return]


def _recorded(file: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput(f"{file} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{file} is not what scripts/train.py wrote: start anew in another run_dir")
    check_resolved(found, whose=str(file))  # `auto` takes a word of it over
    return found
