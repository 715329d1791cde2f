"""`validation_path` inside `path`: what is held out is never trained on, whatever the source."""

import pytest

from compress.data import classification, instruction, sentences, text_files
from compress.errors import BadInput
from tests.data.texts import story, write_lines

SIZES = {"vocab_size": 300, "sequence_length": 16, "test_share": 0}


def rows(who, count):
    return [
        {"text": story(words=60, seed=n) + who, "label": str(n % 2), "prompt": f"{who} {n}",
         "response": who}
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def texts(tmp_path):
    """A folder with thirty rows to train on and ten to hold out."""
    folder = tmp_path / "texts"
    folder.mkdir()
    write_lines(folder / "train.jsonl", rows("learned", 30))
    write_lines(folder / "valid.jsonl", rows("heldout", 10))
    return folder


@pytest.mark.parametrize("source", [text_files, classification, instruction, sentences])
def test_held_out_files_are_left_out_of_the_training_files(source, texts, tmp_path):
    data = source(
        path=texts, validation_path=texts / "valid.jsonl", cache_dir=tmp_path / "c", **SIZES
    )
    assert data.counts["train"]["documents"] == 30
    assert data.counts["validation"]["documents"] == 10
    assert "heldout" not in data.tokenizer.decode(data.train[:]["input_ids"].flatten())
    assert "1 file (train.jsonl); validation: 1 file (valid.jsonl), of which 1 lay" in data.source


@pytest.mark.parametrize("source", [text_files, classification, instruction, sentences])
def test_nothing_left_to_train_on_is_refused_with_the_way_out(source, texts, tmp_path):
    with pytest.raises(BadInput, match=r"all of data\.path, 2 files.*data\.validation_share"):
        source(path=f"{texts}/*.jsonl", validation_path=texts, cache_dir=tmp_path / "c", **SIZES)


def test_another_name_of_a_held_out_file_is_known(texts, tmp_path):
    link = tmp_path / "link.jsonl"
    link.symlink_to(texts / "valid.jsonl")
    data = text_files(path=texts, validation_path=link, cache_dir=tmp_path / "c", **SIZES)
    assert data.counts["train"]["documents"] == 30


def test_files_apart_are_told_without_a_remark(texts, tmp_path):
    data = text_files(
        path=texts / "train.jsonl", validation_path=texts / "valid.jsonl",
        cache_dir=tmp_path / "c", **SIZES,
    )  # fmt: skip
    assert data.source == "1 file (train.jsonl); validation: 1 file (valid.jsonl)"


@pytest.mark.parametrize("source", [text_files, classification, instruction, sentences])
def test_rows_that_another_file_holds_out_are_not_trained_on(source, texts, tmp_path):
    held_out = write_lines(tmp_path / "copy.jsonl", rows("heldout", 10))
    settings = {"path": texts, "validation_path": held_out, "cache_dir": tmp_path / "c"}
    for _ in range(2):  # made, and found
        data = source(**settings, **SIZES)
        assert data.counts["train"]["documents"] == 30
        assert data.counts["validation"]["documents"] == 10
        assert "heldout" not in data.tokenizer.decode(data.train[:]["input_ids"].flatten())
        assert "; 10 of 40 rows stand in the validation data and were not" in data.source


@pytest.mark.parametrize("source", [text_files, classification, instruction, sentences])
def test_a_copy_of_all_that_is_trained_on_is_refused(source, texts, tmp_path):
    copy = write_lines(tmp_path / "copy.jsonl", rows("learned", 30))
    with pytest.raises(BadInput, match=r"all 30 rows .* nothing is left to train on"):
        source(path=texts / "train.jsonl", validation_path=copy, cache_dir=tmp_path / "c", **SIZES)
