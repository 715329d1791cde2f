"""A teacher that was run once: looks its answers up on disk by each row's tokens.

The layout of the files is told in `cache_files.py`; `write_cache` makes them.

Legend: B sequences, L positions, K entries a position, H width of a feature.
"""

import math
from pathlib import Path

import numpy as np
import torch

from compress.contract import Batch, TopKSignal, Want
from compress.errors import BadInput
from compress.teachers.cache_files import (
    Identity,
    Manifest,
    check_identity,
    fingerprint_of_model,
    fingerprint_of_tokenizer,
    row_keys,
    used_positions,
)
from compress.teachers.cache_shards import Shard
from compress.teachers.cache_writer import write_cache

__all__ = [
    "CachedTeacher",
    "Identity",
    "fingerprint_of_model",
    "fingerprint_of_tokenizer",
    "write_cache",
]


class CachedTeacher:
    """Answers from a folder that `write_cache` made; no model is in memory.

    Rows are found by a hash of their tokens, so shuffling, other batch sizes, padding and any
    number of ranks are all fine. Each shard's checksum is proved when it is first touched.

    Args:
        path: the cache's folder.
        teacher: fingerprint that the cache must have; None is not compared.
        tokenizer: likewise.
        data: likewise.

    Raises:
        BadInput: there is no finished cache, a shard is missing or cut, or it was made of
            another teacher, tokenizer or data.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        teacher: str | None = None,
        tokenizer: str | None = None,
        data: str | None = None,
    ) -> None:
        """Reads manifests and row keys, not the answers."""
        self.path = Path(path)
        manifests = _manifests(self.path)
        first = manifests[0]
        wanted = {"teacher": teacher, "tokenizer": tokenizer, "data": data}
        check_identity(first.identity, wanted, where=self.path)
        self.vocab_size, self.name_or_path = first.vocab_size, first.name_or_path
        self.features, self.draws = first.features, first.draws
        self.validation = first.validation
        self.entries = min(first.draws or first.top_k, first.vocab_size)
        self.tokens = sum(m.positions for m in manifests)
        self.bytes_per_token = sum(m.bytes_per_token * m.positions for m in manifests) / max(
            self.tokens, 1
        )
        self._shards = [Shard(self.path, facts) for m in manifests for facts in m.shards]
        self._index_rows()

    def _index_rows(self) -> None:
        keys = [shard.keys for shard in self._shards]
        place = [np.arange(len(k)) for k in keys]
        owner = [np.full(len(k), i) for i, k in enumerate(keys)]
        order = np.argsort(np.concatenate(keys), kind="stable")
        self._keys = np.concatenate(keys)[order]
        self._owner, self._place = np.concatenate(owner)[order], np.concatenate(place)[order]

    def __len__(self) -> int:
        """Rows in the cache."""
        return len(self._keys)

    def signal(self, batch: Batch, want: Want) -> TopKSignal:
        """The cached answer to every row of the batch.

        Raises:
            BadInput: a row or a feature is not in the cache, or a shard is damaged.
        """
        missing = [name for name in want.features if name not in self.features]
        if missing:
            raise BadInput(
                f"the teacher cache {self.path} holds no feature {', '.join(missing)}, only "
                f"{sorted(self.features) or 'logits'}: write it again with these features"
            )
        shape = tuple(batch["input_ids"].shape)
        tokens = torch.arange(self.entries).expand(*shape, -1).clone()
        filler = -math.inf if self.draws else -math.log(self.vocab_size)
        values = torch.full((*shape, self.entries), filler)
        features = {n: torch.zeros(*shape, self.features[n]) for n in want.features}
        used_BL = used_positions(batch).cpu()
        for index, (shard, place) in enumerate(self._find(batch)):
            used_L = used_BL[index]
            if want.logits:
                tokens[index, used_L], values[index, used_L] = shard.entries(
                    place, draws=self.draws, width=self.entries
                )
            for name, feature in features.items():
                feature[index, used_L] = shard.feature(name, place)
        device = batch["input_ids"].device
        return TopKSignal(
            tokens_BLK=tokens.to(device), log_probs_BLK=values.to(device),
            features={n: f.to(device) for n, f in features.items()}, sampled=self.draws > 0,
        )  # fmt: skip

    def _find(self, batch: Batch) -> list[tuple["Shard", int]]:
        keys = np.array(row_keys(batch), dtype=np.int64)
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        absent = np.nonzero(self._keys[at] != keys)[0].tolist()
        if absent:
            for shard in self._shards:
                shard.prove()  # a damaged list of keys looks like absent rows
            raise BadInput(
                f"{len(absent)} of {len(keys)} rows (first: row {absent[0]}) are not among the "
                f"{len(self)} of the teacher cache {self.path}: it was written for other data, "
                "another tokenizer or sequence length. Write it for this run: recipe=cache_teacher"
            )
        return [(self._shards[self._owner[i]], int(self._place[i])) for i in at]


def _manifests(folder: Path) -> list[Manifest]:
    paths = sorted(folder.glob("manifest-*.json"))
    if not paths:
        raise BadInput(f"{folder} holds no teacher cache: write one with recipe=cache_teacher")
    found = [Manifest.load(path) for path in paths]
    if len(found) != found[0].ranks:
        raise BadInput(f"{folder} was written by {found[0].ranks} ranks, {len(found)} are here")
    for path, manifest in zip(paths, found, strict=True):
        if not manifest.finished:
            raise BadInput(
                f"the teacher cache {folder} is not finished ({path.name}: {manifest.positions} "
                "tokens so far): run the same recipe=cache_teacher again, it goes on from there"
            )
        if manifest.identity != found[0].identity:
            raise BadInput(f"{path} belongs to another cache than {paths[0].name}")
    if not any(manifest.shards for manifest in found):
        raise BadInput(f"the teacher cache {folder} holds no rows: its data was empty")
    return found
