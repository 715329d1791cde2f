"""One run, one folder: who may write there, what lies there, and how files get their final names."""  # noqa: E501

import json
import os
import time
from pathlib import Path
from typing import Any

from compress.errors import BadInput
from compress.scripts.lib.resume import run_of


class RunFolder:
    """A locked folder for one run or sweep; two never share one, and a killed one leaves no lock.

    Raises:
        BadInput: the folder cannot be made or written, has too little space, holds another run's
            results (without `ckpt=`), or is in use.
    """

    def __init__(self, path: Path, *, resuming: bool, free_bytes: int = 200 << 20) -> None:
        """Makes the folder if needed and takes its lock."""
        from filelock import FileLock, Timeout

        self.path = path.resolve()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise BadInput(
                f"run_dir={path} cannot be written: {error.strerror or error}"
            ) from error
        self._refuse_full_disk(free_bytes)
        self._lock = FileLock(self.path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise BadInput(
                f"run_dir={path} is in use by another run or sweep; wait until that ends, or give "
                "another run_dir="
            ) from None
        if (self.path / "config.yaml").exists() and not resuming:
            self._lock.release()
            raise BadInput(
                f"run_dir={path} holds a run already; choose another, or go on with it: ckpt=last"
            )

    def release(self) -> None:
        """Let others use the folder."""
        self._lock.release()

    def __enter__(self) -> "RunFolder":
        """Held until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """`release`."""
        self.release()

    def _refuse_full_disk(self, free_bytes: int) -> None:
        import shutil

        free = shutil.disk_usage(self.path).free
        if free < free_bytes:
            raise BadInput(
                f"run_dir={self.path}: {free >> 20} MB free, at least {free_bytes >> 20} MB needed"
            )


def choose_folder(config: Any, recipe: str) -> tuple[Path, bool]:
    """The run folder, and whether a run is gone on with.

    Raises:
        BadInput: a run is to be gone on with, and nothing says which.
    """
    resuming = config.ckpt is not None
    if config.run_dir is not None:
        return Path(config.run_dir), resuming
    if not resuming:
        return default_run_dir(recipe), False
    return (newest_run_dir(recipe) if config.ckpt == "last" else _run_of(config.ckpt)), True


def _run_of(checkpoint: str) -> Path:
    found = run_of(checkpoint)
    if found is None:
        raise BadInput(f"ckpt={checkpoint} lies in no run folder; give run_dir=...")
    return found


def default_run_dir(recipe: str) -> Path:
    """runs/<recipe>/<time>; every rank of one launch sees the same."""
    if "COMPRESS_RUN_DIR" not in os.environ:
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
        os.environ["COMPRESS_RUN_DIR"] = str(Path("runs") / recipe / stamp)
    return Path(os.environ["COMPRESS_RUN_DIR"])


def newest_run_dir(recipe: str) -> Path:
    """The run of a recipe that was written to last, for `ckpt=last` without `run_dir=`.

    Raises:
        BadInput: there is none.
    """
    runs = [path.parent for path in (Path("runs") / recipe).glob("*/checkpoints")]
    if not runs:
        raise BadInput(f"ckpt=last: no run of {recipe} under runs/{recipe}; give run_dir=...")
    return max(runs, key=lambda run: (run / "checkpoints").stat().st_mtime)


def write_atomically(path: Path, text: str) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` for plain data; NaN is refused, since JSON has none."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    """What a JSON file holds, or `default` where there is no file.

    Raises:
        BadInput: it is damaged.
    """
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path} is damaged: {error}; move it away") from error


def read_report(run_dir: Path) -> dict[str, Any]:
    """`report.json` of a run; empty where there is none.

    Raises:
        BadInput: it is damaged, or not what scripts/train.py wrote.
    """
    path = run_dir / "report.json"
    report = read_json(path, {})
    parts = {"quality": dict, "size": dict, "exports": list, "speed": list}
    if not isinstance(report, dict) or not all(
        isinstance(report.get(key, kind()), kind) for key, kind in parts.items()
    ):
        raise BadInput(f"{path} is not what scripts/train.py wrote; move it away")
    return report
