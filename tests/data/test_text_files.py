import pytest
import torch

from compress.data import text_files
from compress.errors import BadInput
from tests.data.texts import story, story_rows, write_lines

SIZES = {"vocab_size": 300, "sequence_length": 16}


def test_one_long_file_fills_every_part(tmp_path):
    (tmp_path / "a.txt").write_text(story(words=40_000))
    data = text_files(path=tmp_path / "a.txt", cache_dir=tmp_path / "cache", **SIZES)
    assert min(len(data.train), len(data.validation), len(data.test)) > 0
    assert len(data.train) > len(data.validation)


def test_rows_of_all_parts_together_are_the_text(tmp_path):
    rows = story_rows()
    path = write_lines(tmp_path / "a.jsonl", rows)
    data = text_files(path=path, cache_dir=tmp_path / "cache", **SIZES)
    assert sum(data.counts[part]["documents"] for part in data.counts) == len(rows)
    text = data.tokenizer.decode(data.train[:]["input_ids"].flatten())
    documents = text.split("<|endoftext|>")[:-1]
    assert set(documents) <= {row["text"] for row in rows}
    left_over = data.counts["train"]["documents"] - len(documents)
    assert left_over in (0, 1)  # the tail that fills no sequence is dropped


def test_no_text_stands_in_two_parts(tmp_path):
    rows = story_rows(20) * 3
    path = write_lines(tmp_path / "a.jsonl", rows)
    data = text_files(path=path, cache_dir=tmp_path / "c", validation_share=0.3, **SIZES)
    assert all(data.counts[p]["documents"] % 3 == 0 for p in ("train", "validation", "test"))


def test_the_order_of_rows_does_not_change_the_split(tmp_path):
    rows = story_rows()
    one = text_files(
        path=write_lines(tmp_path / "a.jsonl", rows), cache_dir=tmp_path / "c", **SIZES
    )
    other = text_files(
        path=write_lines(tmp_path / "b.jsonl", rows[::-1]), cache_dir=tmp_path / "c",
        tokenizer=one.tokenizer, **SIZES,
    )  # fmt: skip
    assert one.counts["validation"]["documents"] == other.counts["validation"]["documents"]


def test_validation_files_of_their_own_are_all_of_the_validation_part(tmp_path):
    train = write_lines(tmp_path / "a.jsonl", story_rows())
    held_out = story(words=600, seed=77)
    (tmp_path / "b.txt").write_text(held_out)
    data = text_files(
        path=train, validation_path=tmp_path / "b.txt", test_share=0, cache_dir=tmp_path / "c",
        **SIZES,
    )  # fmt: skip
    text = data.tokenizer.decode(data.validation[:]["input_ids"].flatten())
    assert held_out.startswith(text.removesuffix("<|endoftext|>"))
    assert data.counts["train"]["documents"] == 60
    assert len(data.test) == 0


def test_a_very_long_document_keeps_its_text_across_pieces(tmp_path):
    text = story(words=20_000)
    path = write_lines(tmp_path / "a.jsonl", [{"text": text}, *story_rows(30)])
    data = text_files(path=path, cache_dir=tmp_path / "c", **SIZES)
    tokens = torch.cat([p[:]["input_ids"].flatten() for p in (data.train, data.validation)])
    assert text[:50_000] in data.tokenizer.decode(tokens)


def test_the_fingerprint_names_settings_and_column_too(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [r | {"other": r["text"]} for r in story_rows()])
    names = {
        text_files(path=path, cache_dir=tmp_path / "c", **(SIZES | change)).fingerprint
        for change in ({}, {"sequence_length": 8}, {"seed": 1}, {"text_column": "other"},
                       {"vocab_size": 310}, {"test_share": 0.1})
    }  # fmt: skip
    assert len(names) == 6


def test_numbers_in_the_text_column_are_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": 3}])
    with pytest.raises(BadInput, match="column 'text' holds int, not text"):
        text_files(path=path, cache_dir=tmp_path / "c", **SIZES)


def test_too_small_a_file_is_told_and_leaves_no_cache(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(BadInput, match="too small"):
        text_files(path=tmp_path / "a.txt", cache_dir=tmp_path / "c", **SIZES)
    assert list((tmp_path / "c").glob("[!.]*")) == []


def test_a_sequence_of_one_token_is_refused(tmp_path):
    with pytest.raises(BadInput, match="sequence_length=1"):
        text_files(path=tmp_path, sequence_length=1)
