"""The layout of a teacher's cache on disk: identity, manifests, row keys, shards, checksums.

Writing is in `cache_writer.py`, reading in `cached.py`.

A row is one sequence without its padding. Its positions lie one after the other in the shard, and
every position has a number of entries: the K likeliest tokens, or the distinct ones of some draws.

Legend: R rows of a shard, P their positions, E entries, H width of a feature, V vocabulary.
  keys          (R,)    int64   hash of the row's tokens
  row_starts    (R+1,)  int64   first position of a row
  entry_starts  (R+1,)  int64   first entry of a row
  lengths       (P,)    uint8   entries of a position
  tokens_low    (E,)    int16   lower 16 bits of the token
  tokens_high   (E,)    uint8   bits above (left out where V <= 65536)
  log_probs     (E,)    float16 (likeliest tokens)   or   counts (E,) uint8 (draws)
  feature.NAME  (P, H)  bfloat16
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.contract import Batch
from compress.errors import BadInput

VERSION = 2
"""Raise it where old caches cannot be read, or cannot be told from those of another teacher."""

NAMES = frozenset(
    ("_name_or_path", "architectures", "base_model_name_or_path", "id2label", "label2id",
     "revision", "transformers_version", "use_cache")
)  # fmt: skip
"""Fields of a model's configuration that decide no number of its answers."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a cache was made of; any difference makes it another cache.

    Args:
        teacher: `fingerprint_of_checkpoint` and the dtype it ran in, `fingerprint_of_model`, or a
            served model's name.
        tokenizer: `fingerprint_of_tokenizer`; empty where there is none.
        data: the data set's own fingerprint.
    """

    teacher: str
    tokenizer: str
    data: str


@dataclass(kw_only=True)
class Manifest:
    """One rank's list of finished shards and all that a reader must know of them.

    `validation` holds the teacher's own `loss` (nats a token) on so many held-out `tokens`.
    """

    identity: Identity
    vocab_size: int
    top_k: int
    draws: int
    features: dict[str, int] = field(default_factory=dict)
    name_or_path: str = ""
    ranks: int = 1
    finished: bool = False
    validation: dict[str, float] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)
    version: int = VERSION

    @property
    def positions(self) -> int:
        """Tokens cached so far."""
        return sum(int(shard["positions"]) for shard in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the logits (features apart) over tokens."""
        logit_bytes: int = sum(shard["logit_bytes"] for shard in self.shards)
        return logit_bytes / max(self.positions, 1)

    def save(self, path: Path) -> None:
        """Write beside, flush to the disk, rename."""
        beside = path.with_suffix(".tmp")
        with beside.open("w") as stream:
            json.dump(asdict(self), stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read one manifest.

        Raises:
            BadInput: it is damaged, or of another version of this layout.
        """
        try:
            fields = json.loads(path.read_text())
            if fields["version"] != VERSION:
                raise BadInput(
                    f"{path} is of cache version {fields['version']}, this library reads "
                    f"{VERSION}: write the cache again"
                )
            return cls(**{**fields, "identity": Identity(**fields["identity"])})
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path} is damaged ({error}): write the cache again") from error


def manifest_path(folder: Path, rank: int) -> Path:
    """Where a rank keeps its manifest."""
    return folder / f"manifest-{rank:05d}.json"


def check_identity(found: Identity, wanted: Mapping[str, str | None], *, where: Path) -> None:
    """Refuse a cache of other data, tokens or teacher; None is not compared.

    Raises:
        BadInput: listing every difference.
    """
    wrong = [
        f"  {name:<10} cached {getattr(found, name)!r}, this run {value!r}"
        for name, value in wanted.items()
        if value is not None and getattr(found, name) != value
    ]
    if wrong:
        raise BadInput(
            f"the teacher cache {where} was made of something else:\n"
            + "\n".join(wrong)
            + "\nWrite a cache for this run to another folder: recipe=cache_teacher; where the "
            "teachers differ in their dtype alone, ask for the cached one: teacher.dtype=..."
        )


def row_keys(batch: Batch) -> list[int]:
    """A 64-bit hash of each row's tokens without padding: independent of order and padding.

    >>> a = {"input_ids": torch.tensor([[5, 6, 7]])}
    >>> b = {"input_ids": torch.tensor([[5, 6, 7, 0]])}
    >>> b["attention_mask"] = torch.tensor([[1, 1, 1, 0]])
    >>> row_keys(a) == row_keys(b)
    True
    """
    tokens = batch["input_ids"].cpu().numpy().astype("<i8")
    used = used_positions(batch).cpu().numpy()
    return [_hash(row[mask]) for row, mask in zip(tokens, used, strict=True)]


def _hash(tokens: "np.ndarray[Any, Any]") -> int:
    digest = hashlib.blake2b(tokens.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def used_positions(batch: Batch) -> Tensor:
    """(B, L) bool: not padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def checksum(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@torch.no_grad()
def fingerprint_of_model(model: nn.Module) -> str:
    """Hash of the configuration and of names, shapes, dtypes and up to 4096 values of every tensor.

    Seconds even for 70B.

    >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> fingerprint_of_model(a) == fingerprint_of_model(a) != fingerprint_of_model(b)
    True
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 4096)][:4096].float().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(some.numpy().tobytes())
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        digest.update(computing_settings(config.to_dict()).encode())
    return digest.hexdigest()[:16]


def computing_settings(config: Mapping[str, Any]) -> str:
    """A model's configuration in one order, without the `NAMES` in it.

    >>> computing_settings({"rope_theta": 1e4, "sub": {"_name_or_path": "x"}, "architectures": []})
    '{"rope_theta": 10000.0, "sub": {}}'
    """

    def kept(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): kept(v) for k, v in value.items() if k not in NAMES}
        return value

    return json.dumps(kept(config), sort_keys=True, default=str)


def fingerprint_of_tokenizer(tokenizer: Any) -> str:
    """Hash of every token and its id."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
