"""The user's own files, read as a stream: which files are meant, their bytes, lines and rows.

Every fault of a file is told with the file, the place in it and the way out.
"""

import codecs
import csv
import glob
import gzip
import hashlib
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from compress.errors import BadInput, did_you_mean

BLOCK_BYTES = 1 << 20
PLAIN = (".txt", ".text", ".md")
ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
Row = dict[str, Any]


def find_files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that a path, a folder, a glob or a list of such means, in a fixed order.

    A folder means the files below it whose format we know (txt, md, jsonl, csv, tsv, parquet;
    .gz too); a file that is named may have any ending, and is plain text where we do not know it.

    Raises:
        BadInput: lists all that do not exist, and folders without such a file.
    """
    named = [path] if isinstance(path, str | Path) else list(path)
    found: list[Path] = []
    problems = []
    for one in named:
        files = list(_files_of(Path(one).expanduser()))
        found.extend(files)
        if not files:
            problems.append(_why_nothing(Path(one).expanduser()))
    if problems or not found:
        raise BadInput("\n".join(problems) or "data.path is an empty list")
    return list(dict.fromkeys(found))


def _files_of(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        known = (p for p in sorted(path.rglob("*")) if kind_of(p) and p.is_file())
        yield from (p for p in known if not p.name.startswith("."))
    elif glob.has_magic(str(path)):
        yield from (Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if _is_file(p))


def _is_file(path: str) -> bool:
    return Path(path).is_file()


def _why_nothing(path: Path) -> str:
    if path.is_dir():
        return f"{path} holds no file ending in {', '.join(PLAIN + ROWS)} (or these with .gz)"
    if glob.has_magic(str(path)):
        return f"{path} matches no file; quote a pattern so that the shell leaves it alone"
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"{path} does not exist.{did_you_mean(path.name, siblings)}"


def kind_of(path: Path) -> str:
    """The ending that tells the format, without .gz; empty where we do not know it.

    >>> kind_of(Path("a/b.jsonl.gz"))
    '.jsonl'
    """
    name = path.name.lower().removesuffix(".gz")
    return next((kind for kind in PLAIN + ROWS if name.endswith(kind)), "")


def content_of(files: Sequence[Path]) -> str:
    """One hash of the files' bytes and formats, wherever they lie."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            one = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))  # type: ignore[arg-type]
        digest.update(kind_of(path).encode() + b"\0" + one.digest())
    return digest.hexdigest()


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked if it is gzip by its first two bytes.

    Raises:
        BadInput: it is empty, unreadable, or its gzip is cut or damaged.
    """
    try:
        with path.open("rb") as raw:
            start = raw.read(2)
            raw.seek(0)
            if not start:
                raise BadInput(f"{path} is empty")
            if start == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(
            f"{path} is a damaged or cut gzip file ({error}): fetch it again, test with gzip -t"
        ) from error
    except PermissionError as error:
        raise BadInput(f"{path} may not be read: {error.strerror}") from error


def read_blocks(path: Path) -> Iterator[str]:
    """The text in blocks of about a megabyte, however long its lines are.

    Raises:
        BadInput: as `open_bytes`; also bytes that are no UTF-8, or a NUL byte, with the offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open_bytes(path) as file:
        while block := file.read(BLOCK_BYTES):
            pending = len(decoder.getstate()[0])
            text = _decode(decoder, block, path, offset - pending)
            offset += len(block)
            yield text.removeprefix("\ufeff") if offset == len(block) else text
        _decode(decoder, b"", path, offset - len(decoder.getstate()[0]), final=True)


def read_lines(path: Path) -> Iterator[str]:
    """The text line by line, line ends kept; errors as `read_blocks`."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open_bytes(path) as file:
        for line in file:
            text = _decode(decoder, line, path, offset, final=True)
            yield text if offset else text.removeprefix("\ufeff")
            offset += len(line)


def _decode(
    decoder: codecs.IncrementalDecoder, block: bytes, path: Path, offset: int, final: bool = False
) -> str:
    try:
        text = decoder.decode(block, final)
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is no UTF-8 at byte {offset + error.start} ({error.reason}). "
            f"Convert it, for instance: iconv -f LATIN1 -t UTF-8 {path.name} > fixed.txt"
        ) from error
    if "\0" in text:
        at = offset + len(text[: text.index("\0")].encode())
        raise BadInput(f"{path} has a NUL byte at {at}: it is binary (or UTF-16), not UTF-8 text")
    return text


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a jsonl, json, csv, tsv or parquet file, with at least these columns.

    Raises:
        BadInput: as `read_blocks`; also a row that is no JSON object or lacks a column, with its
            number, and a damaged parquet file.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    if kind in (".csv", ".tsv"):
        rows = _csv_rows(path, "\t" if kind == ".tsv" else ",")
    elif kind in (".jsonl", ".ndjson", ".json"):
        rows = _json_rows(path)
    else:
        raise BadInput(f"{path} has no columns: give a file ending in {', '.join(ROWS)}")
    for number, row in rows:
        _check_columns(f"{path}, line {number}", columns, list(row))
        yield row


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    lines = enumerate(read_lines(path), start=1)
    for number, line in lines:
        if number == 1 and line.lstrip().startswith("["):
            whole = line + "".join(rest for _, rest in lines)
            values = enumerate(_json(whole, f"{path}"), start=1)
        elif line.strip():
            values = enumerate([_json(line, f"{path}, line {number}")], start=number)
        else:
            continue
        for place, value in values:
            if not isinstance(value, dict):
                raise BadInput(f"{path}, line {place}: no JSON object but {type(value).__name__}")
            yield place, value


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{where}: no JSON ({error.msg} at character {error.pos}); "
            "one object a line is expected"
        ) from error


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)  # the default refuses texts above 128 KiB
    reader = csv.DictReader(read_lines(path), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            yield reader.line_num, {k: v for k, v in row.items() if k is not None and v is not None}
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: no CSV ({error})") from error


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(str(path), columns, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=256, columns=list(columns)):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path} is no readable parquet file ({reason})") from error


def _check_columns(where: str, wanted: Sequence[str], there: list[str]) -> None:
    missing = [column for column in wanted if column not in there]
    if missing:
        raise BadInput(
            f"{where}: no column {', '.join(map(repr, missing))}."
            f"{did_you_mean(missing[0], there)} There are: {', '.join(there) or 'none'}"
        )


def text_in(row: Row, column: str, where: object) -> str:
    """The text of a column.

    Raises:
        BadInput: it holds something else.
    """
    value = row[column]
    if not isinstance(value, str):
        raise BadInput(f"{where}: column {column!r} holds {type(value).__name__}, not text")
    return value
