"""Texts with one label each, for encoders and sequence classifiers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Value

from compress.classes import check_count, names_in_data
from compress.data.pieces import stable_key
from compress.data.prepare import Rows, Settings, Source, prepare
from compress.data.read_files import content_of, text_in
from compress.data.text_data import TextData
from compress.data.text_files import Paths, describe, each_row, training_files
from compress.errors import BadInput, did_you_mean


def classification(
    *,
    path: Paths,
    text_column: str = "text",
    label_column: str = "label",
    labels: Sequence[str] | None = None,
    classes: Sequence[str] = (),
    tokenizer: Any = None,
    vocab_size: int = 2048,
    sequence_length: int = 128,
    validation_path: Paths | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> TextData:
    """One text a row, cut or padded to one length; `labels` is the number of its class.

    Equal texts share a part of the split. Cut texts are counted.

    Args:
        path: jsonl, json, csv, tsv or parquet files: a file, a folder, a glob or a list.
        text_column: what is classified.
        label_column: its class, a word or a whole number.
        labels: names of the classes in the order of their numbers; None: those of the model, and
            without one those of the data, numbers by value, then words by the alphabet.
        classes: names of the classes of the model that is given, in the order of their numbers;
            whole numbers in the data are such numbers. Empty: none is given.
        tokenizer: a tokenizer, the name or folder of one, or None: byte-level BPE is trained.
        vocab_size: of the tokenizer trained here; 258 at least.
        sequence_length: tokens of every row.
        validation_path: held-out files, never trained on even where `path` means them too; None
            takes `validation_share` of `path`.
        validation_share: in (0, 1); unused with `validation_path`.
        test_share: 0.0 makes no test part.
        seed: another one makes another split.
        cache_dir: where the tokens are kept; None: see `compress.data.store.data_folder`.

    Raises:
        BadInput: files, columns or labels are at fault, the data has one class alone, or its
            labels are not the model's classes.
    """
    settings = Settings(
        sequence_length=sequence_length, vocab_size=vocab_size,
        validation_share=validation_share, test_share=test_share, seed=seed,
    )  # fmt: skip
    files, held_out, left_out = training_files(path, validation_path)
    columns = [text_column, label_column]

    def make(row: Any, where: str) -> dict[str, Any]:
        text = text_in(row, text_column, where)
        return {
            "text": text,
            "label": label_name(row[label_column], where),
            "key": stable_key(text, seed=seed),
        }

    def rows_of(chosen: Sequence[Path]) -> Rows:
        return lambda: each_row(chosen, columns, make)

    source = Source(
        rows=rows_of(files),
        validation_rows=rows_of(held_out) if held_out else None,
        content=content_of(files) + (content_of(held_out) if held_out else ""),
        words=f"labelled texts in {describe(files, held_out, left_out)}",
        encode=encode_texts,
        columns={"label": Value("string")},
        outputs={"input_ids": sequence_length, "attention_mask": sequence_length, "labels": 0},
        name_labels=lambda found: check_labels(found, labels, classes),
        details={"kind": "classification", "columns": columns, "labels": list(labels or ())}
        | ({"classes": list(classes)} if classes else {}),
    )
    return prepare(source, settings=settings, tokenizer=tokenizer, cache_dir=cache_dir)


def label_name(value: Any, where: str) -> str:
    """A label as a word: 1, 1.0 and "1" are one class.

    Raises:
        BadInput: it is neither a word nor a whole number.

    >>> label_name(1.0, "row 3")
    '1'
    """
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, int) or (isinstance(value, str) and value.strip()):
        return str(value).strip()
    raise BadInput(f"{where}: the label {value!r} is neither a word nor a whole number")


def check_labels(
    found: Sequence[str], named: Sequence[str] | None, classes: Sequence[str] = ()
) -> list[str]:
    """Names of the classes in the order of their numbers.

    Raises:
        BadInput: there is one class alone, the data has one that `named` lacks, or the labels are
            not the classes of a model.

    >>> check_labels(["10", "2", "b"], None)
    ['2', '10', 'b']
    """
    if named is not None:
        unknown = sorted(set(found) - set(named))
        if unknown:
            hint = did_you_mean(unknown[0], list(named))
            raise BadInput(f"labels lacks {', '.join(map(repr, unknown))} of the data.{hint}")
        if classes:
            check_count(named, classes)
        return list(named)
    if classes:
        return names_in_data(found, classes)
    if len(set(found)) < 2:
        raise BadInput(f"the data has one class alone ({found[0]!r}): nothing can be learned")
    return sorted(set(found), key=lambda x: (0, int(x), x) if x.isdecimal() else (1, 0, x))


def encode_texts(
    rows: Any, tokenizer: Any, settings: Settings, tally: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Tokens with the tokenizer's own start and end, the padding's mask, the label's number."""
    length = settings.sequence_length
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for row in rows:
        tokens = tokenizer(row["text"], truncation=True, max_length=length)["input_ids"]
        tally["documents"] += 1
        tally["full"] += len(tokens) == length
        yield {
            "input_ids": tokens + [pad] * (length - len(tokens)),
            "attention_mask": [1] * len(tokens) + [0] * (length - len(tokens)),
            "labels": row["label"],
        }
