"""A text data set by its name on the Hugging Face hub, or in a local folder of that layout."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import ReadInstruction, load_dataset
from datasets.exceptions import DatasetsError

from compress.data.packing import packed_source, pieces_of
from compress.data.pieces import stable_key
from compress.data.prepare import Rows, Settings, prepare
from compress.data.read_files import text_in
from compress.data.text_data import TextData
from compress.errors import BadInput, did_you_mean


def hub(
    *,
    name: str,
    config: str | None = None,
    split: str = "train",
    validation_split: str | None = None,
    revision: str | None = None,
    text_column: str = "text",
    streaming: bool = False,
    max_rows: int | None = None,
    tokenizer: Any = None,
    vocab_size: int = 2048,
    sequence_length: int = 256,
    validation_share: float = 0.05,
    test_share: float = 0.05,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> TextData:
    """Packed sequences of a data set that `datasets.load_dataset` can load; no code of it runs.

    Args:
        name: on the hub (`owner/name`), or a local folder of data files.
        config: the data set's configuration; None takes its only or default one.
        split: what is trained on, also a slice: `train[:10%]`.
        validation_split: what is held out, no row of `split`; None takes `validation_share` of it.
        revision: branch, tag or commit; None takes the newest, so name one to repeat a run.
        text_column: where the text stands.
        streaming: read over the network without keeping the whole set; needs `max_rows`.
        max_rows: of each split; None takes all.
        tokenizer: a tokenizer, the name or folder of one, or None: byte-level BPE is trained.
        vocab_size: of the tokenizer trained here; 258 at least.
        sequence_length: tokens of every row, from 2 on.
        validation_share: in (0, 1); unused with `validation_split`.
        test_share: 0.0 makes no test part.
        seed: another one makes another split.
        cache_dir: where the tokens are kept; None: see `compress.data.store.data_folder`.

    Raises:
        BadInput: the set, configuration, split or column does not exist or cannot be reached, or
            `split` and `validation_split` share rows.
    """
    settings = Settings(
        sequence_length=sequence_length, vocab_size=vocab_size,
        validation_share=validation_share, test_share=test_share, seed=seed,
    )  # fmt: skip
    if streaming and max_rows is None:
        raise BadInput("data.streaming=true reads without end: set data.max_rows, e.g. 100000")

    if validation_split is not None:
        refuse_overlap(split, validation_split)

    def open_split(wanted: str) -> Any:
        loaded = _load(name, config, wanted, revision=revision, streaming=streaming)
        _check_column(loaded, text_column, name)
        return loaded

    splits = [open_split(s) for s in (split, validation_split) if s is not None]

    def rows_of(loaded: Any) -> Rows:
        def rows() -> Iterator[dict[str, Any]]:
            for number, row in enumerate(islice(loaded, max_rows)):
                text = text_in(row, text_column, f"{name}, row {number}")
                yield from pieces_of([text], key=stable_key(text, seed=seed))

        return rows

    source = packed_source(
        rows_of(splits[0]),
        validation_rows=rows_of(splits[1]) if len(splits) > 1 else None,
        content="".join(_content(s, text_column, max_rows) for s in splits),
        words=f"{name}{f' ({config})' if config else ''}, {split}",
        length=sequence_length,
    )
    return prepare(source, settings=settings, tokenizer=tokenizer, cache_dir=cache_dir)


def refuse_overlap(split: str, validation_split: str) -> None:
    """Refuse slices that share rows, as far as the words tell.

    Whether `train[:5000]` meets `train[-5000:]` depends on the split's length: not refused.

    Raises:
        BadInput: with both slices and the way out.
    """
    try:
        trained, held_out = _rows_named(split), _rows_named(validation_split)
    except (ValueError, AssertionError):
        return  # no such syntax: loading tells what is wrong with it
    shared = sorted(
        one.splitname
        for one in trained
        for other in held_out
        if (
            one.splitname == other.splitname and max(one.from_, other.from_) < min(one.to, other.to)
        )
        or "all" in (one.splitname, other.splitname)
    )
    if shared:
        raise BadInput(
            f"data.split={split} and data.validation_split={validation_split} share rows of "
            f"{shared[0]!r}: what is held out would be trained on. Name slices that do not meet, "
            "e.g. data.split='train[:90%]' data.validation_split='train[90%:]', or leave "
            "data.validation_split out: data.validation_share then holds out a share"
        )


def _rows_named(split: str) -> list[Any]:
    """First and last row of each slice, in splits so long that percents pass any number of rows."""
    names = {term.partition("[")[0].strip() for term in split.split("+")}
    rows: list[Any] = ReadInstruction.from_spec(split).to_absolute(dict.fromkeys(names, 10**12))
    return rows


def _load(name: str, config: str | None, split: str, **how: Any) -> Any:
    try:
        return load_dataset(name, config, split=split, **how)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise BadInput(
            f"cannot load the data set {name!r} (config {config}, split {split}): {reason}. "
            "Check data.name, data.config and data.split; without a network use a data set that "
            "is cached already, or files: data=text data.path=..."
        ) from error


def _check_column(loaded: Any, column: str, name: str) -> None:
    there = loaded.column_names or list(next(iter(loaded), {}))
    if column not in there:
        raise BadInput(
            f"{name} has no column {column!r}.{did_you_mean(column, list(there))} "
            f"There are: {', '.join(there)}"
        )


def _content(loaded: Any, column: str, max_rows: int | None) -> str:
    """Hash of the texts themselves: names and revisions may come to mean something else."""
    digest = hashlib.blake2b(digest_size=16)
    for row in islice(loaded, max_rows):
        text = str(row[column]).encode()
        digest.update(len(text).to_bytes(8) + text)
    return digest.hexdigest()
