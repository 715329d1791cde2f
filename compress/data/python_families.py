"""The embedded default of classification: from which package does a piece of source code come?

Labels that lie on every machine: the standard library's own packages (`email`, `asyncio`, ...).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Value

from compress.data.classification import check_labels, encode_texts
from compress.data.pieces import stable_key
from compress.data.prepare import Settings, Source, prepare
from compress.data.python_stdlib import EXCLUDED, SourceFile, content_of_files, read_source_files
from compress.data.text_data import TextData
from compress.errors import BadInput


def python_families(
    *,
    tokenizer: Any = None,
    vocab_size: int = 2048,
    sequence_length: int = 128,
    roots: str | Sequence[str] | None = None,
    exclude: Sequence[str] = EXCLUDED,
    families: int = 8,
    lines: int = 12,
    validation_share: float = 0.15,
    test_share: float = 0.1,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> TextData:
    """Pieces of Python files, each with the top-level package it comes from.

    Parts are split by file, so that no held-out piece has a neighbour that was learned. The
    packages with the most code are taken; they differ a little between Python versions.

    Args:
        tokenizer: a tokenizer, the name or folder of one, or None: byte-level BPE is trained.
        vocab_size: of the tokenizer trained here; 258 at least.
        sequence_length: tokens of every row: shorter pieces are padded, longer ones cut.
        roots: folders to read instead of the running interpreter's standard library.
        exclude: names of folders left out at any depth below a root.
        families: classes; 2 at least.
        lines: of a piece, blank ones not counted; few make it hard, many make few pieces.
        validation_share: of the files; in (0, 1).
        test_share: of the files; 0.0 makes no test part.
        seed: another one makes another split.
        cache_dir: where the tokens are kept; None: see `compress.data.store.data_folder`.

    Raises:
        BadInput: a root is no folder, or holds fewer packages.
    """
    settings = Settings(
        sequence_length=sequence_length, vocab_size=vocab_size,
        validation_share=validation_share, test_share=test_share, seed=seed,
    )  # fmt: skip
    if families < 2 or lines < 1:
        raise BadInput(f"families={families}, lines={lines}: use 2 or more, 1 or more")
    files, skipped = read_source_files(roots, exclude)
    names = largest_families(files, families)
    kept = [file for file in files if file.name.partition("/")[0] in names]

    def rows() -> Iterator[dict[str, Any]]:
        found = [
            {"text": piece, "label": file.name.partition("/")[0],
             "key": stable_key(file.name, seed=seed), "place": f"{file.name} {number}"}
            for file in kept
            for number, piece in enumerate(pieces(file.text, lines=lines))
        ]  # fmt: skip
        # mixed: the first held-out batches must hold every class
        for row in sorted(found, key=lambda row: stable_key(str(row["place"]), seed=seed)):
            yield {key: row[key] for key in ("text", "label", "key")}

    source = Source(
        rows=rows,
        content=content_of_files(kept),
        words=f"pieces of {len(kept)} Python files of {', '.join(names)}",
        encode=encode_texts,
        columns={"label": Value("string")},
        outputs={"input_ids": sequence_length, "attention_mask": sequence_length, "labels": 0},
        name_labels=lambda found: check_labels(found, names),
        details={"kind": "python families", "lines": lines, "labels": names},
        skipped=skipped,
    )
    return prepare(source, settings=settings, tokenizer=tokenizer, cache_dir=cache_dir)


def largest_families(files: Sequence[SourceFile], count: int) -> list[str]:
    """The packages with the most code, by the alphabet.

    Raises:
        BadInput: there are fewer.
    """
    sizes: Counter[str] = Counter()
    for file in files:
        family, slash, _ = file.name.partition("/")
        if slash:
            sizes[family] += len(file.text)
    if len(sizes) < count:
        raise BadInput(f"families={count}, but only {len(sizes)} packages lie below the roots")
    # by size, then name: equal sizes must not depend on the order of reading
    return sorted(sorted(sizes, key=lambda name: (-sizes[name], name))[:count])


def pieces(text: str, *, lines: int) -> Iterator[str]:
    """Runs of so many lines that are not blank; a shorter rest is left out."""
    full = [line for line in text.splitlines() if line.strip()]
    for start in range(0, len(full) - lines + 1, lines):
        yield "\n".join(full[start : start + lines])
