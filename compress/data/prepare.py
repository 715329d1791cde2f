"""From pieces of text to packed sequences on disk: split, tokenizer, blocks of equal length."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, load_from_disk
from datasets.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from compress.data.pieces import Piece, check_shares, split_by_key
from compress.data.store import build_once, data_folder
from compress.data.text_data import PARTS, TextData
from compress.data.tokenizer import (
    check_vocab_size,
    load_tokenizer,
    tokenizer_digest,
    train_byte_bpe,
)
from compress.errors import BadInput

FORMAT = 1
"""Raise it where the same settings would give other tokens: old caches are then left alone."""

PieceMaker = Callable[[], Iterable[Piece]]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How text becomes sequences.

    Args:
        sequence_length: tokens of every row; at least 2, else nothing is predicted.
        vocab_size: of the tokenizer that is trained where none is given.
        validation_share: of the pieces, where no validation files are given; in (0, 1).
        test_share: likewise; 0.0 makes no test part.
        seed: another one makes another split.
    """

    sequence_length: int
    vocab_size: int
    validation_share: float
    test_share: float
    seed: int

    def check(self) -> None:
        """Refuse settings that cannot work, before anything is read.

        Raises:
            BadInput: with the setting and its bounds.
        """
        if self.sequence_length < 2:
            raise BadInput(
                f"sequence_length={self.sequence_length} predicts nothing: use 2 or more"
            )
        check_vocab_size(self.vocab_size)
        check_shares(self.validation_share, self.test_share)


def prepare_text(
    pieces: PieceMaker,
    *,
    packing: Packing,
    tokenizer: Any,
    content: str,
    source: str,
    cache_dir: str | Path | None,
    validation_pieces: PieceMaker | None = None,
    skipped: Mapping[str, int] | None = None,
) -> TextData:
    """Tokenised, packed, split and cached text.

    Args:
        pieces: reads the text, from its beginning at each call.
        packing: how it becomes sequences.
        tokenizer: a tokenizer, the name or folder of one, or None: one is trained.
        content: hash of all that `pieces` and `validation_pieces` read.
        source: what the data is, in words.
        cache_dir: see `data_folder`.
        validation_pieces: the held-out text, where it is not a share of `pieces`.
        skipped: what was left out and how often, for the counts.

    Raises:
        BadInput: settings that cannot work, or a part without a single sequence.
    """
    packing.check()
    tokenizer = load_tokenizer(tokenizer)
    name = fingerprint_of(packing, tokenizer, content)

    def build(folder: Path) -> None:
        _build(folder, pieces, validation_pieces, packing, tokenizer)

    folder = build_once(data_folder(cache_dir) / name, build)
    return load_prepared(
        folder, tokenizer=tokenizer, fingerprint=name, source=source, skipped=skipped
    )


def fingerprint_of(settings: Any, tokenizer: Any, content: str) -> str:
    """One name for content, settings and tokenizer together."""
    facts = asdict(settings) | {"content": content, "format": FORMAT}
    if tokenizer is not None:
        facts["tokenizer"] = tokenizer_digest(tokenizer)
        facts.pop("vocab_size", None)  # nothing is trained
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def load_prepared(
    folder: Path,
    *,
    tokenizer: Any,
    fingerprint: str,
    source: str,
    skipped: Mapping[str, int] | None = None,
) -> TextData:
    """What a build left in `folder`, memory-mapped."""
    facts = json.loads((folder / "facts.json").read_text())
    parts = {part: load_from_disk(str(folder / part)).with_format("torch") for part in PARTS}
    if tokenizer is None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    counts = facts["counts"] | ({"skipped": dict(skipped)} if skipped else {})
    return TextData(
        tokenizer=tokenizer, fingerprint=fingerprint, source=source, counts=counts,
        labels=tuple(facts.get("labels", ())), **parts,
    )  # fmt: skip


def _build(
    folder: Path,
    pieces: PieceMaker,
    validation_pieces: PieceMaker | None,
    packing: Packing,
    tokenizer: Any,
) -> None:
    work = folder / "work"
    with quiet_datasets():
        parts = _split(work, pieces, validation_pieces, packing)
        if tokenizer is None:
            train = parts["train"]
            texts = (text for batch in train.iter(batch_size=256) for text in batch["text"])
            tokenizer = train_byte_bpe(texts, vocab_size=packing.vocab_size)
            tokenizer.save_pretrained(folder / "tokenizer")
        counts = {}
        for part, rows in parts.items():
            packed = write_rows(
                pack(rows, tokenizer, packing.sequence_length), work / part,
                lengths={"input_ids": packing.sequence_length, "labels": packing.sequence_length},
            )  # fmt: skip
            counts[part] = {
                "documents": sum(rows["ends"]),
                "sequences": len(packed),
                "tokens": len(packed) * packing.sequence_length,
            }
            packed.save_to_disk(str(folder / part))
        check_parts(counts, packing)
    shutil.rmtree(work)
    (folder / "facts.json").write_text(json.dumps({"counts": counts}, indent=1))


def _split(
    work: Path, pieces: PieceMaker, validation_pieces: PieceMaker | None, packing: Packing
) -> dict[str, Dataset]:
    raw = _text_rows(pieces, work / "text")
    if len(raw) == 0:
        raise BadInput("there is no text in the data: every file is empty")
    share = packing.validation_share if validation_pieces is None else 0.0
    parts = split_by_key(
        np.asarray(raw["key"]), validation_share=share, test_share=packing.test_share
    )
    split = {part: _selected(raw, rows_N) for part, rows_N in parts.items()}
    if validation_pieces is not None:
        split["validation"] = _text_rows(validation_pieces, work / "validation_text")
    return split


def _text_rows(pieces: PieceMaker, cache_dir: Path) -> Dataset:
    def rows() -> Iterator[dict[str, Any]]:
        for piece in pieces():
            yield asdict(piece)

    features = Features(
        {"text": Value("large_string"), "key": Value("int64"), "ends": Value("bool")}
    )
    return _from_rows(rows, features, cache_dir)


def _selected(raw: Dataset, rows_N: NDArray[np.int64]) -> Dataset:
    """These rows; a piece whose continuation went to another part ends where it is."""
    chosen = raw.select(rows_N)
    if len(rows_N) == 0:
        return chosen
    cut_N = np.append(np.diff(rows_N) != 1, True) | np.asarray(chosen["ends"])
    features = chosen.features
    return chosen.remove_columns("ends").add_column("ends", cut_N.tolist()).cast(features)


def pack(rows: Any, tokenizer: Any, sequence_length: int) -> Iterator[dict[str, Any]]:
    """Blocks of `sequence_length` tokens: documents joined by end of text, the tail dropped."""
    waiting: list[int] = []
    for batch in rows.iter(batch_size=64):
        encoded = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
        for tokens, ends in zip(encoded, batch["ends"], strict=True):
            waiting.extend(tokens)
            if ends:
                waiting.append(tokenizer.eos_token_id)
        full = len(waiting) - len(waiting) % sequence_length
        for start in range(0, full, sequence_length):
            block = waiting[start : start + sequence_length]
            yield {"input_ids": block, "labels": block}
        waiting = waiting[full:]


def write_rows(
    rows: Iterable[dict[str, Any]], cache_dir: Path, *, lengths: Mapping[str, int]
) -> Dataset:
    """Rows of fixed-length integer lists as an Arrow file; length 0 means one number."""
    kinds = {k: List(Value("int32"), length=n) if n else Value("int64") for k, n in lengths.items()}
    return _from_rows(lambda: iter(rows), Features(kinds), cache_dir)


def _from_rows(
    rows: Callable[[], Iterator[dict[str, Any]]], features: Features, cache_dir: Path
) -> Dataset:
    # a name of our own: `datasets` would pickle the generator, tokenizer and all, to find one
    return Dataset.from_generator(
        rows, features=features, cache_dir=str(cache_dir), fingerprint=cache_dir.name
    )


def check_parts(counts: Mapping[str, Mapping[str, int]], packing: Packing) -> None:
    """Refuse data of which a wanted part has not one sequence.

    Raises:
        BadInput: lists each such part, with the way out.
    """
    wanted: Sequence[str] = PARTS if packing.test_share > 0 else PARTS[:2]
    empty = [part for part in wanted if counts[part]["sequences"] == 0]
    if empty:
        found = ", ".join(f"{part} {counts[part]['sequences']}" for part in PARTS)
        raise BadInput(
            f"the data is too small: no sequence of {packing.sequence_length} tokens for "
            f"{' and '.join(empty)} (sequences: {found}). Give more text, a shorter "
            "data.sequence_length, a larger data.validation_share or data.test_share "
            "(test_share=0 makes no test part), or files of their own by data.validation_path"
        )


class quiet_datasets:
    """Without the bars that `datasets` draws for each of its inner steps."""

    def __enter__(self) -> None:
        self.enabled = is_progress_bar_enabled()
        disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            enable_progress_bar()
