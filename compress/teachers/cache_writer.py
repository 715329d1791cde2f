"""Writing a teacher's answers to disk once: top-k or sampled logits, and chosen features.

What is kept of a row is in `cache_rows.py`. Legend: B sequences, L positions.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor

from compress.contract import Batch, Teacher, Want
from compress.errors import BadInput
from compress.teachers.cache_files import (
    Identity,
    Manifest,
    check_identity,
    checksum,
    manifest_path,
    row_keys,
    used_positions,
)
from compress.teachers.cache_rows import MAX_ENTRIES, Signal, encode_row
from compress.teachers.cache_shards import Shard, is_whole


def write_cache(
    teacher: Teacher,
    batches: Iterable[Batch],
    path: str | Path,
    *,
    identity: Identity,
    top_k: int = 20,
    draws: int = 0,
    features: tuple[str, ...] = (),
    rows_per_shard: int = 512,
    seed: int = 0,
    rank: int = 0,
    ranks: int = 1,
    validation: Callable[[], dict[str, float]] | None = None,
) -> Manifest:
    """Run the teacher once over `batches` and keep its answers.

    A killed run loses at most one unfinished shard: call again with the same arguments and the
    rows that lie on disk are skipped, in whatever order they come.

    Args:
        teacher: any; one whose ranks work together (`collective`) is never skipped.
        batches: every row of the data once; padding is left out, repeated rows are kept once.
        path: the cache's folder.
        identity: what the cache is made of; a reader compares it.
        top_k: likeliest tokens a position, up to 255: 4 bytes each (5 above 65536 tokens), so 20
            are 81 (101) bytes. Biased: the tail is lost.
        draws: instead of the likeliest, this many samples a position (random-sampling KD,
            arXiv 2503.16870), an unbiased estimate; equal ones are stored once, in 3 (4) bytes.
            0 is off; 50 need about 12 distinct tokens for a usual teacher.
        features: module names; 2 bytes an element of their outputs (B, L, H), besides the logits.
        rows_per_shard: what a kill may cost.
        seed: of the draws; each row's draws depend on it and on the row alone.
        rank: this process among `ranks`, each with its own part of the data and its own shards.
        ranks: number of writing processes.
        validation: asked when all rows are written: the teacher's own loss, for reports of runs
            that have the cache alone.

    Returns:
        This rank's manifest, finished.

    Raises:
        BadInput: the folder holds another cache, is being written, or a setting is out of range.
    """
    if not 0 <= draws <= MAX_ENTRIES or not 1 <= top_k <= MAX_ENTRIES:
        raise BadInput(f"top_k={top_k} must be 1 to 255 and draws={draws} 0 to 255")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        identity=identity, vocab_size=teacher.vocab_size, top_k=0 if draws else top_k,
        draws=draws, ranks=ranks, name_or_path=getattr(teacher, "name_or_path", ""),
    )  # fmt: skip
    with _only_writer(folder, rank):
        writer = _Writer(folder, rank, manifest, features)
        for batch in batches:
            writer.add(teacher, batch, seed=seed)
            if writer.rows >= rows_per_shard:
                writer.flush()
        writer.flush()
        collective = getattr(teacher, "collective", False)
        if validation is not None and (collective or not writer.manifest.validation):
            writer.manifest.validation = validation()
        writer.manifest.finished = True
        writer.manifest.save(manifest_path(folder, rank))
    return writer.manifest


@contextmanager
def _only_writer(folder: Path, rank: int) -> Iterator[None]:
    lock = FileLock(folder / f".writer-{rank:05d}.lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout as error:
        raise BadInput(f"another process is writing the teacher cache {folder}") from error


class _Writer:
    """Collects rows until a shard is full; knows which rows are on disk already."""

    def __init__(
        self, folder: Path, rank: int, manifest: Manifest, features: tuple[str, ...]
    ) -> None:
        self.folder, self.rank, self.manifest, self.features = folder, rank, manifest, features
        self.seen: set[int] = set()
        self._resume()
        self._forget()

    def _resume(self) -> None:
        for leftover in self.folder.glob(f"rank{self.rank:05d}-*.tmp"):
            leftover.unlink()
        path = manifest_path(self.folder, self.rank)
        if not path.exists():
            return
        found = Manifest.load(path)
        new = self.manifest
        wanted = {name: getattr(new.identity, name) for name in ("teacher", "tokenizer", "data")}
        check_identity(found.identity, wanted, where=self.folder)
        same = (found.top_k, found.draws, found.ranks, set(found.features)) == (
            new.top_k, new.draws, new.ranks, set(self.features) if found.shards else set(),
        )  # fmt: skip
        if not same:
            raise BadInput(
                f"the teacher cache {self.folder} was begun with top_k={found.top_k}, "
                f"draws={found.draws}, features={sorted(found.features)}, ranks={found.ranks}; "
                "go on with these, or write to another folder"
            )
        self.manifest = found
        # rows of a shard that did not survive are asked for again
        found.shards = [facts for facts in found.shards if is_whole(self.folder, facts)]
        for facts in found.shards:
            self.seen.update(Shard(self.folder, facts).keys.tolist())

    def _forget(self) -> None:
        self.rows = 0
        self.keys: list[int] = []
        self.row_positions: list[int] = []
        self.row_entries: list[int] = []
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, teacher: Teacher, batch: Batch, *, seed: int) -> None:
        """Ask the teacher about the rows that are not here yet."""
        keys = row_keys(batch)
        fresh = [i for i, key in enumerate(keys) if key not in self.seen and key not in keys[:i]]
        collective = getattr(teacher, "collective", False)
        if not fresh and not collective:
            return
        asked = list(range(len(keys))) if collective else fresh
        part = {name: tensor[asked] for name, tensor in batch.items()}
        signal = teacher.signal(part, Want(logits=True, features=self.features))
        for place, index in enumerate(asked):
            if index in fresh:
                self._add_row(signal, part, place, keys[index], seed)

    def _add_row(self, signal: Signal, batch: Batch, place: int, key: int, seed: int) -> None:
        used_L = used_positions(batch)[place]
        tensors = encode_row(signal, place, used_L, self.manifest, seed=(seed ^ key) & (2**63 - 1))
        for name in self.features:
            feature = signal.features[name]
            if feature.dim() != 3:
                raise BadInput(f"{name} gives {tuple(feature.shape)}; only (B, L, H) is cached")
            self.manifest.features[name] = feature.shape[-1]
            kept = feature[place][used_L.to(feature.device)]
            tensors[f"feature.{name}"] = kept.to("cpu", torch.bfloat16)
        for name, tensor in tensors.items():
            self.parts.setdefault(name, []).append(tensor)
        self.seen.add(key)
        self.keys.append(key)
        self.row_positions.append(len(tensors["lengths"]))
        self.row_entries.append(len(tensors["tokens_low"]))
        self.rows += 1

    def flush(self) -> None:
        """Make a shard of what was collected: written beside, flushed, renamed, then listed."""
        if not self.rows:
            return
        tensors = {name: torch.cat(parts) for name, parts in self.parts.items()}
        tensors["keys"] = torch.tensor(self.keys)
        tensors["row_starts"] = _starts(self.row_positions)
        tensors["entry_starts"] = _starts(self.row_entries)
        taken = [int(shard["file"][10:16]) for shard in self.manifest.shards]
        file = f"rank{self.rank:05d}-{max(taken, default=-1) + 1:06d}.safetensors"
        beside = self.folder / f"{file}.tmp"
        save_file(tensors, beside)
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
        logit_bytes = sum(t.nbytes for n, t in tensors.items() if not n.startswith("feature."))
        shard = {
            "file": file, "sha256": checksum(beside), "bytes": beside.stat().st_size,
            "rows": self.rows, "positions": sum(self.row_positions), "logit_bytes": logit_bytes,
        }  # fmt: skip
        beside.replace(self.folder / file)
        self.manifest.shards.append(shard)
        self.manifest.finished = False
        self.manifest.save(manifest_path(self.folder, self.rank))
        self._forget()


def _starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)
