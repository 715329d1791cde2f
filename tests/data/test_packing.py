"""Documents joined by end of text, whichever of their pieces a part holds."""

from collections import Counter

import pytest
from datasets import Dataset

from compress.data.packing import packed_source, pieces_of
from compress.data.pieces import PIECE_CHARACTERS
from compress.data.prepare import Settings
from compress.data.tokenizer import train_byte_bpe

LENGTH = 4


def joined(chosen):
    """Tokens of these pieces of two documents of three pieces each: aaa, bbb."""
    texts = [letter * PIECE_CHARACTERS * 3 for letter in "ab"]
    source = packed_source(
        lambda: (piece for text in texts for piece in pieces_of([text], key=0)),
        content="", words="", length=LENGTH,
    )  # fmt: skip
    rows = Dataset.from_list([list(source.rows())[number] for number in chosen])
    settings = Settings(
        sequence_length=LENGTH, vocab_size=258, validation_share=0.1, test_share=0, seed=0
    )
    tokenizer = train_byte_bpe(["a b"], vocab_size=258)
    blocks = source.encode(rows, tokenizer, settings, Counter())
    return tokenizer.decode([token for block in blocks for token in block["input_ids"]])


@pytest.mark.parametrize("chosen", [(0, 4), (1, 5), (0, 3), (2, 3), (1, 4)])
def test_pieces_of_two_documents_have_an_end_of_text_between_them(chosen):
    assert "a<|endoftext|>b" in joined(chosen)


@pytest.mark.parametrize("chosen", [(0, 1), (1, 2), (0, 1, 2)])
def test_pieces_that_follow_one_another_have_none(chosen):
    assert joined(chosen).startswith("a" * PIECE_CHARACTERS * len(chosen))


def test_a_gap_in_a_document_is_an_end_of_text():
    assert "a<|endoftext|>a" in joined((0, 2))
