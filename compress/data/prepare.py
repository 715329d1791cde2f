"""From rows of text to tokenised parts on disk: split, tokenizer, fixed-length rows, one cache."""

import copy
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)
from transformers import PreTrainedTokenizerFast

from compress.data.pieces import check_shares, split_by_key
from compress.data.progress import counted
from compress.data.seal import check_seal, seal
from compress.data.store import build_once, data_folder
from compress.data.text_data import PARTS, TextData
from compress.data.tokenizer import (
    check_vocab_size,
    load_tokenizer,
    tokenizer_digest,
    train_byte_bpe,
)
from compress.errors import BadInput

FORMAT = 3
"""Raise it where the same settings would give other tokens: old caches are then left alone."""

Rows = Callable[[], Iterable[dict[str, Any]]]
"""Reads the rows from their beginning, at each call; each has a `text` and a `key`."""

Encode = Callable[[Any, Any, "Settings", Counter[str]], Iterator[dict[str, Any]]]
"""(rows of one part, tokenizer, settings, tally) -> tokenised rows of one length."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How text becomes rows of tokens.

    Args:
        sequence_length: tokens of every row; at least 2, else nothing is predicted.
        vocab_size: of the tokenizer that is trained where none is given.
        validation_share: of the rows, where no validation files are given; in (0, 1).
        test_share: likewise; 0.0 makes no test part.
        seed: another one makes another split.
    """

    sequence_length: int
    vocab_size: int
    validation_share: float
    test_share: float
    seed: int

    def __post_init__(self) -> None:
        """Refuses settings that cannot work, before anything is read.

        Raises:
            BadInput: with the setting and its bounds.
        """
        if self.sequence_length < 2:
            raise BadInput(
                f"sequence_length={self.sequence_length} predicts nothing: use 2 or more"
            )
        check_vocab_size(self.vocab_size)
        check_shares(self.validation_share, self.test_share)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the rows come from and how they are encoded.

    Args:
        rows: the text; `validation_rows` the held-out text, where it is not a share of `rows`.
        content: hash of all that both read.
        words: what the data is, for reports.
        encode: from text to tokens.
        columns: further columns of a row beside `text` and `key`.
        outputs: length of each column that `encode` gives; 0 means one number.
        details: further settings that decide the tokens.
        name_labels: from the labels found in the data to the classes in the order of their
            numbers; None where rows have no `label`.
        skipped: what was left out and how often.
    """

    rows: Rows
    content: str
    words: str
    encode: Encode
    columns: Mapping[str, Any]
    outputs: Mapping[str, int]
    validation_rows: Rows | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    name_labels: Callable[[list[str]], list[str]] | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)


def prepare(
    source: Source, *, settings: Settings, tokenizer: Any, cache_dir: str | Path | None
) -> TextData:
    """Split, tokenised and cached data; the second call only maps the files.

    Args:
        source: the text.
        settings: how it becomes rows of tokens.
        tokenizer: a tokenizer, the name or folder of one, or None: train one on the train part.
        cache_dir: see `data_folder`.

    Raises:
        BadInput: the text cannot be used, or a part has not a single row.
    """
    tokenizer = load_tokenizer(tokenizer)
    name = _fingerprint(source, settings, tokenizer)
    folder = data_folder(cache_dir) / name
    build_once(folder, lambda beside: _build(beside, source, settings, tokenizer))
    facts = _facts(folder)
    parts = {part: _open(folder / f"{part}.arrow") for part in PARTS}
    if tokenizer is None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    counts = facts["counts"] | ({"skipped": dict(source.skipped)} if source.skipped else {})
    words = "; ".join(filter(None, (source.words, facts.get("held_out"))))
    return TextData(
        tokenizer=tokenizer, fingerprint=name, source=words, counts=counts,
        labels=tuple(facts["labels"]), **parts,
    )  # fmt: skip


def _fingerprint(source: Source, settings: Settings, tokenizer: Any) -> str:
    facts = asdict(settings) | {"content": source.content, "format": FORMAT}
    facts |= {"details": dict(source.details), "outputs": dict(source.outputs)}
    facts["own_validation"] = source.validation_rows is not None
    if tokenizer is not None:
        facts["tokenizer"] = tokenizer_digest(tokenizer)
        del facts["vocab_size"]  # nothing is trained
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
        sealed = facts["files"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadInput(
            f"the data cache {folder} is damaged (facts.json: {error}): delete that folder, "
            "and the next run makes it anew"
        ) from error
    check_seal(folder, sealed)
    return facts


def _open(path: Path) -> Dataset:
    return Dataset.from_file(str(path)).with_format("torch")


def _build(folder: Path, source: Source, settings: Settings, tokenizer: Any) -> None:
    work = folder / "work"
    counts: dict[str, dict[str, int]] = {}
    with _quiet():
        parts, held_out = _split(work, source, settings)
        labels = source.name_labels(_labels_in(parts)) if source.name_labels else []
        if tokenizer is None:
            texts = counted(_texts(parts["train"]), "training the tokenizer", len(parts["train"]))
            tokenizer = train_byte_bpe(texts, vocab_size=settings.vocab_size)
            tokenizer.save_pretrained(folder / "tokenizer")
        # a call leaves its truncation and padding in the tokenizer, which an export would then hold
        own = copy.deepcopy(tokenizer)
        for part, rows in parts.items():
            tally: Counter[str] = Counter(documents=0)
            encoded = _numbered(source.encode(rows, own, settings, tally), labels)
            shown = counted(encoded, f"tokenising {part}")
            written = _write_encoded(shown, folder / f"{part}.arrow", source.outputs)
            tokens = len(written) * source.outputs["input_ids"]
            counts[part] = {**tally, "sequences": len(written), "tokens": tokens}
    _check_parts(counts, settings)
    shutil.rmtree(work)
    kept = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    facts = {"counts": counts, "labels": labels, "held_out": held_out, "files": seal(folder, kept)}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


def _split(work: Path, source: Source, settings: Settings) -> tuple[dict[str, Dataset], str]:
    """The parts, and in words what was left out of the others for the held-out rows' sake."""
    columns = {"text": Value("large_string"), "key": Value("int64"), **source.columns}
    work.mkdir()
    features = Features(columns)
    raw = _write_rows(counted(source.rows(), "reading"), work / "rows.arrow", features)
    if len(raw) == 0:
        raise BadInput("there is no text in the data: every document is empty")
    if source.validation_rows is None:
        return _dealt_out(raw, settings, validation_share=settings.validation_share), ""
    rows = counted(source.validation_rows(), "reading validation")
    held_out = _write_rows(rows, work / "validation_rows.arrow", features)
    kept, told = _without(raw, held_out)
    return {**_dealt_out(kept, settings, validation_share=0.0), "validation": held_out}, told


def _dealt_out(rows: Dataset, settings: Settings, *, validation_share: float) -> dict[str, Dataset]:
    numbers = split_by_key(
        np.asarray(rows["key"]), validation_share=validation_share, test_share=settings.test_share
    )
    return {part: rows.select(rows_N) for part, rows_N in numbers.items()}


def _without(rows: Dataset, held_out: Dataset) -> tuple[Dataset, str]:
    """Rows whose key no held-out row has, since equal texts share a part; and that in words.

    Raises:
        BadInput: none is left.
    """
    shared_N = np.isin(np.asarray(rows["key"]), np.asarray(held_out["key"]))
    count = int(shared_N.sum())
    if count == len(rows):
        raise BadInput(
            f"all {count} rows of the data stand in the validation data too: nothing is left to "
            "train on. Hold out other texts, or none: data.validation_share then holds out a share"
        )
    told = f"{count} of {len(rows)} rows stand in the validation data and were not trained on"
    return rows.select(np.flatnonzero(~shared_N)), told if count else ""


def _texts(rows: Dataset) -> Iterator[str]:
    for batch in rows.iter(batch_size=64):
        yield from batch["text"]


def _labels_in(parts: Mapping[str, Dataset]) -> list[str]:
    return sorted({label for rows in parts.values() for label in rows.unique("label")})


def _numbered(encoded: Iterator[dict[str, Any]], labels: list[str]) -> Iterator[dict[str, Any]]:
    numbers = {label: number for number, label in enumerate(labels)}
    for row in encoded:
        yield {**row, "labels": numbers[row["labels"]]} if labels else row


def _write_encoded(
    encoded: Iterable[dict[str, Any]], path: Path, outputs: Mapping[str, int]
) -> Dataset:
    # int32 halves the file; the torch format still answers int64
    kinds = {k: List(Value("int32"), length=n) if n else Value("int64") for k, n in outputs.items()}
    return _write_rows(encoded, path, Features(kinds))


def _write_rows(rows: Iterable[dict[str, Any]], path: Path, features: Features) -> Dataset:
    # rows written once, by pieces: memory stays small whatever the data's size
    from datasets.arrow_writer import ArrowWriter

    writer = ArrowWriter(path=str(path), features=features, writer_batch_size=256)
    for row in rows:
        writer.write(row)
    writer.finalize()
    writer.close()
    return Dataset.from_file(str(path))


def _check_parts(counts: Mapping[str, Mapping[str, int]], settings: Settings) -> None:
    wanted = PARTS if settings.test_share > 0 else PARTS[:2]
    empty = [part for part in wanted if counts[part]["sequences"] == 0]
    if empty:
        found = ", ".join(f"{part} {counts[part]['sequences']}" for part in PARTS)
        raise BadInput(
            f"the data is too small: no sequence of {settings.sequence_length} tokens for "
            f"{' and '.join(empty)} (sequences: {found}). Give more text, a shorter "
            "data.sequence_length, a larger data.validation_share or data.test_share "
            "(test_share=0 makes no test part), or files of their own by data.validation_path"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars that `datasets` draws for each of its inner steps."""
    enabled = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            enable_progress_bar()
