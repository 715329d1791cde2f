"""Texts without labels, one or several a row, for encoders that are judged by their embeddings."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from compress.data.classification import encode_texts
from compress.data.pieces import stable_key
from compress.data.prepare import Rows, Settings, Source, prepare
from compress.data.read_files import content_of, read_rows, text_in
from compress.data.text_data import TextData
from compress.data.text_files import Paths, describe, training_files
from compress.errors import BadInput


def sentences(
    *,
    path: Paths,
    text_columns: Sequence[str] = ("text",),
    tokenizer: Any = None,
    vocab_size: int = 2048,
    sequence_length: int = 128,
    validation_path: Paths | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> TextData:
    """Every text of every named column is one sequence, cut or padded to one length.

    Pairs are two columns (`[query, passage]`): both are embedded, each for itself. The texts of a
    row share a part of the split, and so do rows of equal texts.

    Args:
        path: jsonl, json, csv, tsv or parquet files: a file, a folder, a glob or a list.
        text_columns: where the texts stand; one column or more.
        tokenizer: a tokenizer, the name or folder of one, or None: byte-level BPE is trained.
        vocab_size: of the tokenizer trained here; 258 at least.
        sequence_length: tokens of every sequence.
        validation_path: held-out files, never trained on even where `path` means them too; None
            takes `validation_share` of `path`.
        validation_share: in (0, 1); unused with `validation_path`.
        test_share: 0.0 makes no test part.
        seed: another one makes another split.
        cache_dir: where the tokens are kept; None: see `compress.data.store.data_folder`.

    Raises:
        BadInput: files or columns are at fault, or no column is named.
    """
    settings = Settings(
        sequence_length=sequence_length, vocab_size=vocab_size,
        validation_share=validation_share, test_share=test_share, seed=seed,
    )  # fmt: skip
    columns = list(text_columns)
    if isinstance(text_columns, str) or not columns:
        raise BadInput(f"text_columns={text_columns!r}: name one column or more, as a list")
    files, held_out, left_out = training_files(path, validation_path)

    def rows_of(chosen: Sequence[Path]) -> Rows:
        return lambda: each_text(chosen, columns, seed=seed)

    source = Source(
        rows=rows_of(files),
        validation_rows=rows_of(held_out) if held_out else None,
        content=content_of(files) + (content_of(held_out) if held_out else ""),
        words=f"texts in {describe(files, held_out, left_out)}",
        encode=encode_unlabelled,
        columns={},
        outputs={"input_ids": sequence_length, "attention_mask": sequence_length},
        details={"kind": "sentences", "columns": columns},
    )
    return prepare(source, settings=settings, tokenizer=tokenizer, cache_dir=cache_dir)


def each_text(
    files: Sequence[Path], columns: Sequence[str], *, seed: int
) -> Iterable[dict[str, Any]]:
    """One row a text; the key is that of all texts of the row together."""
    for file in files:
        for number, row in enumerate(read_rows(file, columns), start=1):
            texts = [text_in(row, column, f"{file}, row {number}") for column in columns]
            key = stable_key("\n".join(texts), seed=seed)
            yield from ({"text": text, "key": key} for text in texts)


def encode_unlabelled(
    rows: Any, tokenizer: Any, settings: Settings, tally: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Tokens and the padding's mask."""
    labelled = ({"text": row["text"], "label": ""} for row in rows)
    for encoded in encode_texts(labelled, tokenizer, settings, tally):
        yield {key: value for key, value in encoded.items() if key != "labels"}
