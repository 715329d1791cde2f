"""Packed sequences: documents joined by end of text and cut into blocks of one length."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from datasets import Value

from compress.data.pieces import cut_pieces, stable_key
from compress.data.prepare import Rows, Settings, Source


def pieces_of(
    blocks: Iterable[str], *, key: int | None = None, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """One document in pieces that can be tokenised at once.

    Args:
        blocks: its text, in order.
        key: decides the part of the whole document; None deals out each piece by its own text,
            so that one long file fills all parts.
        seed: of the keys made here.

    >>> [(p["number"], p["ends"]) for p in pieces_of(["abc"], key=1)]
    [(0, True)]
    """
    pieces = enumerate(cut_pieces(blocks))
    waiting = next(pieces, None)
    while waiting is not None:
        number, text = waiting
        waiting = next(pieces, None)
        own = stable_key(text, seed=seed) if key is None else key
        yield {"text": text, "key": own, "number": number, "ends": waiting is None}


def packed_source(
    rows: Rows,
    *,
    content: str,
    words: str,
    length: int,
    validation_rows: Rows | None = None,
    skipped: Mapping[str, int] | None = None,
) -> Source:
    """A source whose rows come from `pieces_of`."""
    return Source(
        rows=_counted_on(rows),
        validation_rows=_counted_on(validation_rows) if validation_rows else None,
        content=content, words=words, encode=pack,
        columns={"number": Value("int64"), "ends": Value("bool")},
        outputs={"input_ids": length, "labels": length},
        details={"kind": "packed"}, skipped=skipped or {},
    )  # fmt: skip


def _counted_on(rows: Rows) -> Rows:
    """Numbers that run on, with a gap before each document: neighbours are of one document."""

    def counted_rows() -> Iterator[dict[str, Any]]:
        number = 0
        for row in rows():
            number += 1 if row["number"] else 2
            yield {**row, "number": number}

    return counted_rows


def pack(
    rows: Any, tokenizer: Any, settings: Settings, tally: Counter[str]
) -> Iterator[dict[str, list[int]]]:
    """Blocks of `sequence_length` tokens; the tail that fills none is dropped."""
    waiting: list[int] = []
    for tokens in _joined(rows, tokenizer, tally):
        waiting.extend(tokens)
        length = settings.sequence_length
        full = len(waiting) - len(waiting) % length
        for start in range(0, full, length):
            block = waiting[start : start + length]
            yield {"input_ids": block, "labels": block}
        waiting = waiting[full:]


def _joined(rows: Any, tokenizer: Any, tally: Counter[str]) -> Iterator[list[int]]:
    """Tokens of each piece, end of text between pieces that do not follow one another."""
    expected = 0  # number of the piece that would continue the last one; 0: its document has ended
    for batch in rows.iter(batch_size=64):
        encoded = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
        for tokens, number, ends in zip(encoded, batch["number"], batch["ends"], strict=True):
            if expected and number != expected:
                yield [tokenizer.eos_token_id]
            yield tokens
            if ends:
                tally["documents"] += 1
                yield [tokenizer.eos_token_id]
            expected = 0 if ends else number + 1
    if expected:
        yield [tokenizer.eos_token_id]
