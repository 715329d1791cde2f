"""One shard of a teacher's cache: opened, proved and read by row.

The layout is told in `cache_files.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from torch import Tensor

from compress.errors import BadInput
from compress.teachers.cache_files import checksum
from compress.teachers.cache_rows import decode_row


class Shard:
    """One file: row keys in memory, answers read by row; proved once."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.path, self.sha256 = folder / facts["file"], facts["sha256"]
        size = self.path.stat().st_size if self.path.exists() else -1
        if size != facts["bytes"]:
            state = "missing" if size < 0 else f"{size} bytes long instead of {facts['bytes']}"
            raise _damaged(self.path, state)
        try:
            self._tensors = _mapped(self.path)
            self.keys: np.ndarray[Any, Any] = self._tensors["keys"].numpy()
            self._rows, self._entries = (
                self._tensors["row_starts"].tolist(),
                self._tensors["entry_starts"].tolist(),
            )
            self._names = set(self._tensors)
        except Exception as error:
            raise _damaged(self.path, str(error)) from error
        self._proved = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tensors": {}}

    def prove(self) -> None:
        """Read it all once and compare its checksum.

        Raises:
            BadInput: it is not what was written.
        """
        if not self._proved and checksum(self.path) != self.sha256:
            raise _damaged(self.path, "its SHA-256 is not the manifest's")
        self._proved = True

    def _slice(self, name: str, start: int, stop: int) -> Tensor:
        self.prove()
        if not self._tensors:  # unpickled in another process
            self._tensors = _mapped(self.path)
        return self._tensors[name][start:stop].clone()

    def entries(self, place: int, *, draws: int, width: int) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities (positions, K) of one row."""
        span = self._entries[place : place + 2]
        names = self._names & {"tokens_low", "tokens_high", "counts", "log_probs"}
        packed = {name: self._slice(name, *span) for name in names}
        packed["lengths"] = self._slice("lengths", *self._rows[place : place + 2])
        return decode_row(packed, draws=draws, width=width)

    def feature(self, name: str, place: int) -> Tensor:
        """One row's feature (positions, H) in fp32."""
        return self._slice(f"feature.{name}", *self._rows[place : place + 2]).float()


def _mapped(path: Path) -> dict[str, Tensor]:
    """The file's tensors, mapped: pages are read when they are used.

    All are asked for once, since safetensors 0.8 keeps 32 bytes of each tensor or slice it gives.
    """
    opener: Any = safe_open
    with opener(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def _damaged(path: Path, state: str) -> BadInput:
    return BadInput(
        f"shard {path.name} of the teacher cache {path.parent} is damaged: {state}. "
        "Copy it again from where it was written, or remove the cache and write it again"
    )


def is_whole(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether a listed shard is there, byte for byte."""
    path = folder / facts["file"]
    return path.exists() and checksum(path) == str(facts["sha256"])
