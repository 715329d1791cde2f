"""The user's own text: plain files, or a text column of jsonl, csv and parquet files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from compress.data.packing import packed_source, pieces_of
from compress.data.pieces import stable_key
from compress.data.prepare import Rows, Settings, prepare
from compress.data.read_files import (
    ROWS,
    content_of,
    find_files,
    kind_of,
    read_blocks,
    read_rows,
    text_in,
)
from compress.data.text_data import TextData
from compress.errors import BadInput

Paths = str | Path | Sequence[str | Path]


def text_files(
    *,
    path: Paths,
    text_column: str = "text",
    tokenizer: Any = None,
    vocab_size: int = 2048,
    sequence_length: int = 256,
    validation_path: Paths | None = None,
    validation_share: float = 0.05,
    test_share: float = 0.05,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> TextData:
    """Packed sequences of the user's own files.

    A plain text file is one document; a row of the others is one. The split follows from hashes
    of the text, never from positions: equal texts share a part. Files are streamed: their size,
    and that of a line, may exceed the memory.

    Args:
        path: a file, a folder, a glob, or a list of these; txt, md, jsonl, json, csv, tsv and
            parquet, also with .gz.
        text_column: where the text stands in the files that have columns.
        tokenizer: a tokenizer, the name or folder of one, or None: byte-level BPE is trained.
        vocab_size: of the tokenizer trained here; 258 at least.
        sequence_length: tokens of every row, from 2 on.
        validation_path: held-out files, never trained on even where `path` means them too; None
            takes `validation_share` of `path`.
        validation_share: in (0, 1); unused with `validation_path`.
        test_share: 0.0 makes no test part.
        seed: another one makes another split.
        cache_dir: where the tokens are kept; None: see `compress.data.store.data_folder`.

    Raises:
        BadInput: a path, an encoding, a column or an archive is at fault, or the text too short.
    """
    settings = Settings(
        sequence_length=sequence_length, vocab_size=vocab_size,
        validation_share=validation_share, test_share=test_share, seed=seed,
    )  # fmt: skip
    files, held_out, left_out = training_files(path, validation_path)

    def rows_of(chosen: list[Path]) -> Rows:
        return lambda: _pieces(chosen, text_column, seed)

    source = packed_source(
        rows_of(files),
        validation_rows=rows_of(held_out) if held_out else None,
        content=content_of(files) + (content_of(held_out) if held_out else "") + text_column,
        words=describe(files, held_out, left_out),
        length=sequence_length,
    )
    return prepare(source, settings=settings, tokenizer=tokenizer, cache_dir=cache_dir)


def _pieces(files: list[Path], column: str, seed: int) -> Iterator[dict[str, Any]]:
    for file in files:
        if kind_of(file) in ROWS:
            for row in read_rows(file, [column]):
                text = text_in(row, column, file)
                yield from pieces_of([text], key=stable_key(text, seed=seed))
        else:
            yield from pieces_of(read_blocks(file), seed=seed)


def training_files(
    path: Paths, validation_path: Paths | None
) -> tuple[list[Path], list[Path], int]:
    """The files to train on, those held out, and how many of `path` were left out for these.

    Raises:
        BadInput: as `find_files`; also where every file of `path` is held out.
    """
    named = find_files(path)
    held_out = find_files(validation_path) if validation_path is not None else []
    real = {file.resolve() for file in held_out}
    files = [file for file in named if file.resolve() not in real]
    if not files:
        raise BadInput(
            f"data.validation_path holds out all of data.path, {describe(named)}: nothing is left "
            "to train on. Name other files there, or none: data.validation_share then holds out "
            "a share of the text"
        )
    return files, held_out, len(named) - len(files)


def describe(files: Sequence[Path], held_out: Sequence[Path] = (), left_out: int = 0) -> str:
    """The files in words, without their folders: a report may travel.

    >>> describe([Path("x/a.txt"), Path("x/b.txt")])
    '2 files (a.txt, b.txt)'
    """
    names = [file.name for file in files]
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    own = f"; validation: {describe(held_out)}" if held_out else ""
    own += f", of which {left_out} lay in data.path and were not trained on" if left_out else ""
    return f"{len(names)} file{'s' * (len(names) > 1)} ({listed}){own}"


def each_row(
    files: Sequence[Path], columns: Sequence[str], make: Callable[[Any, str], Any]
) -> Iterable[Any]:
    """`make(row, where)` of every row of every file."""
    for file in files:
        for number, row in enumerate(read_rows(file, columns), start=1):
            yield make(row, f"{file}, row {number}")
