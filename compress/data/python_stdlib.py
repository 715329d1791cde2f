"""The embedded default: Python source files that lie on every machine."""

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.data.packing import packed_source, pieces_of
from compress.data.pieces import stable_key
from compress.data.prepare import Settings, prepare
from compress.data.text_data import TextData
from compress.errors import BadInput

EXCLUDED = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")
"""Folders left out at any depth below a root: tests are full of odd tables and repeated lines."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file: its path below its root decides its part, its text is the document."""

    name: str
    text: str


def python_stdlib(
    *,
    tokenizer: Any = None,
    vocab_size: int = 2048,
    sequence_length: int = 256,
    roots: str | Sequence[str] | None = None,
    exclude: Sequence[str] = EXCLUDED,
    validation_share: float = 0.05,
    test_share: float = 0.05,
    max_bytes: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> TextData:
    """Python source files, split by file: some 11 MB, without a network.

    A file's part follows from a hash of its path below its root, never from its position.
    Files that repeat another one, or are no UTF-8, are left out and counted.

    Args:
        tokenizer: a tokenizer, the name or folder of one, or None: byte-level BPE is trained.
        vocab_size: of the tokenizer trained here; 258 at least.
        sequence_length: tokens of every row, from 2 on.
        roots: folders to read instead of the running interpreter's standard library.
        exclude: names of folders left out at any depth below a root; empty takes all.
        validation_share: of the files; in (0, 1).
        test_share: of the files; 0.0 makes no test part.
        max_bytes: stop before this many; None takes all. Files are taken in the order of their
            hashes, so that a smaller limit takes a part of what a larger one takes.
        seed: another one makes another split.
        cache_dir: where the tokens are kept; None: see `compress.data.store.data_folder`.

    Raises:
        BadInput: a root is no folder, or holds too little.
    """
    settings = Settings(
        sequence_length=sequence_length, vocab_size=vocab_size,
        validation_share=validation_share, test_share=test_share, seed=seed,
    )  # fmt: skip
    folders = _folders(roots)
    files, skipped = _read(folders, frozenset(exclude))
    files = _limit(files, max_bytes, seed)

    def rows() -> Iterator[dict[str, Any]]:
        for file in files:
            yield from pieces_of([file.text], key=stable_key(file.name, seed=seed))

    what = "the standard library" if roots is None else ", ".join(f.name for f in folders)
    words = f"Python source files of {what}: {len(files)} files"
    source = packed_source(
        rows, content=content_of_files(files), words=words, length=sequence_length, skipped=skipped
    )
    return prepare(source, settings=settings, tokenizer=tokenizer, cache_dir=cache_dir)


def read_source_files(
    roots: str | Sequence[str] | None, exclude: Sequence[str]
) -> tuple[list[SourceFile], dict[str, int]]:
    """Every file below the roots, and how many were left out for which reason.

    Raises:
        BadInput: a root is no folder, or holds no Python file.
    """
    return _read(_folders(roots), frozenset(exclude))


def _folders(roots: str | Sequence[str] | None) -> list[Path]:
    if roots is None:
        return [Path(sysconfig.get_path("stdlib"))]
    folders = [Path(r).expanduser() for r in ([roots] if isinstance(roots, str) else roots)]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing or not folders:
        raise BadInput(f"data.roots names no folder: {', '.join(missing) or 'the list is empty'}")
    return folders


def _read(
    folders: Sequence[Path], excluded: frozenset[str]
) -> tuple[list[SourceFile], dict[str, int]]:
    files, seen = [], set[bytes]()
    skipped = {"undecodable": 0, "duplicate": 0, "empty": 0}
    for root in folders:
        for path in _python_files(root, excluded):
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                skipped["undecodable"] += 1
                continue
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if not text.strip() or digest in seen:
                skipped["duplicate" if text.strip() else "empty"] += 1
                continue
            seen.add(digest)
            files.append(SourceFile(name=path.relative_to(root).as_posix(), text=text))
    if not files:
        raise BadInput(f"no Python file below {', '.join(map(str, folders))}")
    return files, skipped


def _python_files(root: Path, excluded: frozenset[str]) -> Iterator[Path]:
    """In an order that is the same on every machine; excluded folders are never entered."""
    for path in sorted(root.iterdir(), key=lambda p: p.name):
        if path.is_dir() and not path.is_symlink() and path.name not in excluded:
            yield from _python_files(path, excluded)
        elif path.suffix == ".py" and path.is_file():
            yield path


def _limit(files: list[SourceFile], max_bytes: int | None, seed: int) -> list[SourceFile]:
    if max_bytes is None:
        return files
    # a hash apart from the split's: else the first files would all be validation files
    kept, used = [], 0
    for file in sorted(files, key=lambda f: stable_key(f"order {f.name}", seed=seed)):
        used += len(file.text.encode())
        if used > max_bytes:
            break
        kept.append(file)
    if not kept:
        raise BadInput(f"max_bytes={max_bytes} is less than the first file: use 1000000 or more")
    return kept


def content_of_files(files: Sequence[SourceFile]) -> str:
    """A hash of all names and texts."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.name}\0{len(file.text)}\0".encode())
        digest.update(file.text.encode())
    return digest.hexdigest()
