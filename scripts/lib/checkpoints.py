"""Checkpoints that are whole or not there, that run no code, and that a signal saves first."""

import contextlib
import errno
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from compress.errors import BadInput

KNOWN_TO_TAKE_OURS = ("auto", "ddp", "fsdp2")
"""Strategies that write one file by a `CheckpointIO`; DeepSpeed's write folders of their own."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside, flushes to the disk, renames; reads tensors and plain values alone."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """The old file or the new one, whole, whenever the process or the machine dies.

        Raises:
            BadInput: the disk is full or may not be written; the checkpoint before is untouched.
        """
        final = Path(path)
        beside = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(final)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into the latter
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise BadInput(_why_unwritten(final, error)) from error
        _flush_folder(final.parent)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The state that was saved.

        Raises:
            BadInput: there is no such file, it is damaged, or it is a pickle that would run code.
        """
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint by `weights_only=True`: a file from elsewhere runs no code.

    Raises:
        BadInput: there is no such file, it is damaged, or it is a pickle that would run code.
    """
    if not path.is_file():
        raise BadInput(f"there is no checkpoint at {path}")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"{path} is refused: it holds more than tensors and plain values, which could run "
            f'code ({reason}). If you trust it, keep its weights: python -c "import torch; '
            "s = torch.load('IN', weights_only=False); torch.save({'state_dict': "
            "s['state_dict']}, 'OUT')\""
        ) from error
    except Exception as error:  # a damaged archive raises whatever its reader likes
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise BadInput(
            f"{path} is no readable checkpoint ({reason}): take another one, or start anew"
        ) from error
    if not isinstance(state, dict) or "state_dict" not in state:
        raise BadInput(f"{path} is no checkpoint of a run: it has no state_dict")
    return state


def _why_unwritten(path: Path, error: Exception) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or _free(path) < 1 << 20
    why = "the disk is full" if full else str(error).splitlines()[0]
    return (
        f"the checkpoint {path} cannot be written: {why} ({_free(path) >> 20} MB free). The one "
        "before, if any, is whole: make room and go on with ckpt=last"
    )


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return 0


def _flush_folder(folder: Path) -> None:
    # a rename is kept by the folder: without this, a power cut may bring back the old name
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plugins_for(strategy: Any) -> list[Any]:
    """Our way to write checkpoints, for strategies that keep one in one file."""
    return [SafeCheckpointIO()] if str(strategy).split("_")[0] in KNOWN_TO_TAKE_OURS else []


class StoppedBySignal(SystemExit):
    """The run was asked to end and has saved; its status is 128 + the signal, as in shells."""


class SaveOnSignal(Checkpoint):
    """Saves a checkpoint at the next optimizer step when SIGTERM or SIGINT arrives, then ends.

    A second signal ends at once. It is a `Checkpoint`, so that Lightning runs it last, after every
    callback has brought its state to the step.
    """

    def __init__(self, path: Path) -> None:
        """`path` is the checkpoint that `ckpt=last` goes on from."""
        self.path = path
        self._signal = 0
        self._seen_step = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Takes over both signals; Lightning's own handler ends between two micro-batches."""
        self._seen_step = trainer.global_step
        with contextlib.suppress(ValueError):  # not the main thread: signals go elsewhere
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise StoppedBySignal(128 + number)
        self._signal = number

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Saves and ends, if a signal came to any rank."""
        stepped = trainer.global_step != self._seen_step
        self._seen_step = trainer.global_step
        if not stepped or not self._asked(trainer):
            return
        trainer.save_checkpoint(self.path)
        if trainer.is_global_zero:
            print(
                f"Stopped at step {trainer.global_step} and saved. "
                "Go on with the same command and ckpt=last.",
                file=sys.stderr,
            )
        raise StoppedBySignal(128 + (self._signal or signal.SIGTERM))

    def _asked(self, trainer: L.Trainer) -> bool:
        if trainer.world_size == 1:
            return bool(self._signal)
        # a launcher's signal reaches the ranks at different steps: they must save together
        return bool(trainer.strategy.reduce_boolean_decision(bool(self._signal), all=False))

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
