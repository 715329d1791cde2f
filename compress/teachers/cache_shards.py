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
            self._file: Any = _opened(self.path)
            tensor = self._file.get_tensor
            self.keys: np.ndarray[Any, Any] = tensor("keys").numpy()
            self._rows, self._entries = (
                tensor("row_starts").tolist(),
                tensor("entry_starts").tolist(),
            )
            self._names = set(self._file.keys())
        except Exception as error:
            raise _damaged(self.path, str(error)) from error
        self._proved = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

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
        if self._file is None:  # unpickled in another process
            self._file = _opened(self.path)
        found: Tensor = self._file.get_slice(name)[start:stop]
        return found

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


def _opened(path: Path) -> Any:
    opener: Any = safe_open
    return opener(path, framework="pt")


def _damaged(path: Path, state: str) -> BadInput:
    return BadInput(
        f"shard {path.name} of the teacher cache {path.parent} is damaged: {state}. "
        "Copy it again from where it was written, or remove the cache and write it again"
    )


def is_whole(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether a listed shard is there, byte for byte."""
    path = folder / facts["file"]
    return path.exists() and checksum(path) == str(facts["sha256"])
