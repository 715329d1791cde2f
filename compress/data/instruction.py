"""Prompts with answers, and chats: only what the assistant says is learned."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import List, Value

from compress.contract import IGNORED
from compress.data.pieces import stable_key
from compress.data.prepare import Rows, Settings, Source, prepare
from compress.data.read_files import content_of, text_in
from compress.data.text_data import TextData
from compress.data.text_files import Paths, describe, each_row, training_files
from compress.data.tokenizer import load_tokenizer, tokenizer_digest
from compress.errors import BadInput

Turns = list[dict[str, str]]


def instruction(
    *,
    path: Paths,
    prompt_column: str = "prompt",
    response_column: str = "response",
    messages_column: str | None = None,
    tokenizer: Any = None,
    vocab_size: int = 2048,
    sequence_length: int = 512,
    validation_path: Paths | None = None,
    validation_share: float = 0.05,
    test_share: float = 0.05,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> TextData:
    """One conversation a row, padded to one length; labels of all but the answers are -100.

    Conversations are written by the tokenizer's chat template. A tokenizer without one writes a
    prompt, a line end, the response and end of text. Equal prompts share a part of the split. An
    answer that does not fit is cut; a row of which nothing to learn fits is left out; both are
    counted.

    Args:
        path: jsonl, json, csv, tsv or parquet files: a file, a folder, a glob or a list.
        prompt_column: the question.
        response_column: the answer that is learned.
        messages_column: a list of `{"role": ..., "content": ...}` instead of both; every
            assistant turn is learned. Needs a chat template.
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
        BadInput: files or columns are at fault, or the chat template is missing or unsuitable.
    """
    settings = Settings(
        sequence_length=sequence_length, vocab_size=vocab_size,
        validation_share=validation_share, test_share=test_share, seed=seed,
    )  # fmt: skip
    tokenizer = load_tokenizer(tokenizer)
    template = getattr(tokenizer, "chat_template", None)
    if messages_column is not None and template is None:
        raise BadInput(
            "chats are written by a chat template, which this tokenizer lacks: use an instruct "
            "model's tokenizer, or prompt and response columns"
        )
    files, held_out, left_out = training_files(path, validation_path)
    columns = [messages_column] if messages_column else [prompt_column, response_column]

    def make(row: Any, where: str) -> dict[str, Any]:
        turns = _turns(row, columns, where)
        text, learned = _rendered(turns, tokenizer, where) if template else _plain(turns)
        first = next((t["content"] for t in turns if t["role"] == "user"), text)
        return {"text": text, "learned": learned, "key": stable_key(first, seed=seed)}

    def rows_of(chosen: Sequence[Path]) -> Rows:
        return lambda: each_row(chosen, columns, make)

    source = Source(
        rows=rows_of(files),
        validation_rows=rows_of(held_out) if held_out else None,
        content=content_of(files) + (content_of(held_out) if held_out else ""),
        words=f"conversations in {describe(files, held_out, left_out)}",
        encode=encode_answers,
        columns={"learned": List(Value("int64"))},
        outputs=dict.fromkeys(("input_ids", "labels", "attention_mask"), sequence_length),
        details={
            "kind": "instruction", "columns": columns,
            "template": tokenizer_digest(tokenizer) if template else "plain",
        },
    )  # fmt: skip
    return prepare(source, settings=settings, tokenizer=tokenizer, cache_dir=cache_dir)


def _turns(row: Any, columns: Sequence[str], where: str) -> Turns:
    if len(columns) == 2:
        user, assistant = (text_in(row, column, where) for column in columns)
        return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    turns = row[columns[0]]
    good = isinstance(turns, list) and all(
        isinstance(t, dict) and isinstance(t.get("role"), str) and isinstance(t.get("content"), str)
        for t in turns
    )
    if not good or not any(t["role"] == "assistant" for t in turns):
        raise BadInput(
            f"{where}: {columns[0]!r} must be a list of objects with role and content, "
            "one of them by the assistant"
        )
    return [{"role": t["role"], "content": t["content"]} for t in turns]


def _plain(turns: Turns) -> tuple[str, list[int]]:
    """Text, and [start, end) of what is learned; one past the end stands for end of text."""
    prompt = turns[0]["content"] + "\n"
    text = prompt + turns[1]["content"]
    return text, [len(prompt), len(text) + 1]


def _rendered(turns: Turns, tokenizer: Any, where: str) -> tuple[str, list[int]]:
    def render(upto: int, *, ask: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            turns[:upto], tokenize=False, add_generation_prompt=ask
        )
        return text

    try:
        whole = render(len(turns), ask=False)
        learned: list[int] = []
        for number, turn in enumerate(turns):
            if turn["role"] == "assistant":
                before, after = render(number, ask=True), render(number + 1, ask=False)
                if not (whole.startswith(before) and whole.startswith(after)):
                    raise BadInput(
                        f"{where}: the chat template rewrites earlier turns, so turn {number + 1} "
                        "cannot be found in the whole: give conversations of a single answer"
                    )
                learned += [len(before), len(after)]
    except BadInput:
        raise
    except Exception as error:  # templates are programs of the tokenizer: they raise anything
        raise BadInput(f"{where}: the chat template refuses this conversation: {error}") from error
    return whole, learned


def encode_answers(
    rows: Any, tokenizer: Any, settings: Settings, tally: Counter[str]
) -> Iterator[dict[str, list[int]]]:
    """Tokens, labels of the learned characters, and the mask of what is no padding."""
    length = settings.sequence_length
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for row in rows:
        tally["documents"] += 1
        encoded = tokenizer(
            row["text"], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        tokens, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
        if row["learned"][-1] > len(row["text"]):
            tokens, starts = [*tokens, tokenizer.eos_token_id], [*starts, len(row["text"])]
        labels = _labels(tokens, starts, row["learned"])
        tally["cut"] += len(tokens) > length
        # the first token is never predicted
        if all(label == IGNORED for label in labels[1:length]):
            tally["no_answer_fits"] += 1
            continue
        yield {
            "input_ids": _padded(tokens, length, pad),
            "labels": _padded(labels, length, IGNORED),
            "attention_mask": _padded([1] * len(tokens), length, 0),
        }


def _labels(tokens: list[int], starts: list[int], learned: list[int]) -> list[int]:
    """A token is learned if it starts inside a learned span."""
    spans = list(zip(learned[::2], learned[1::2], strict=True))
    inside: Callable[[int], bool] = lambda s: any(a <= s < b for a, b in spans)  # noqa: E731
    return [t if inside(s) else IGNORED for t, s in zip(tokens, starts, strict=True)]


def _padded(values: list[int], length: int, fill: int) -> list[int]:
    return values[:length] + [fill] * (length - len(values))
