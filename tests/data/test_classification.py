import pytest
import torch

from compress.data import classification, sentences
from compress.data.tokenizer import train_byte_bpe
from compress.errors import BadInput
from tests.data.texts import story, write_lines

SIZES = {"vocab_size": 300, "sequence_length": 16}


def rows(count=60):
    return [
        {"text": f"{'good' if i % 2 else 'bad'} tree {i}", "label": "yes" if i % 2 else "no"}
        for i in range(count)
    ]


def test_labels_are_numbers_in_the_order_of_their_names(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", rows())
    data = classification(path=path, cache_dir=tmp_path / "c", **SIZES)
    assert data.labels == ("no", "yes")
    for row in data.train:
        text = data.tokenizer.decode(row["input_ids"], skip_special_tokens=True)
        assert int(row["labels"]) == int(text.startswith("good"))
    assert data.train[:3]["labels"].dtype == torch.int64


def test_the_models_own_order_of_classes_is_kept(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", rows())
    data = classification(
        path=path, labels=["yes", "maybe", "no"], cache_dir=tmp_path / "c", **SIZES
    )
    assert data.labels == ("yes", "maybe", "no")
    assert set(data.train[:]["labels"].tolist()) == {0, 2}


def test_long_texts_are_cut_and_short_ones_padded(tmp_path):
    long_row = {"text": "tree " * 50, "label": "no"}
    path = write_lines(tmp_path / "a.jsonl", [*rows(), long_row])
    data = classification(path=path, cache_dir=tmp_path / "c", **SIZES)
    assert data.train[:]["input_ids"].shape[1] == 16
    assert 0 in data.train[:]["attention_mask"]


def test_a_label_that_was_not_named_is_told(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", rows())
    with pytest.raises(BadInput, match=r"labels lacks 'no'"):
        classification(path=path, labels=["yes", "maybe"], cache_dir=tmp_path / "c", **SIZES)


def test_data_of_one_class_is_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", rows()[::2])
    with pytest.raises(BadInput, match="one class alone"):
        classification(path=path, cache_dir=tmp_path / "c", **SIZES)


@pytest.mark.parametrize("label", [None, 0.5, "", [1]])
def test_a_label_that_is_no_class_is_told_with_its_row(tmp_path, label):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "tree", "label": label}])
    with pytest.raises(BadInput, match="row 1: the label"):
        classification(path=path, cache_dir=tmp_path / "c", **SIZES)


def test_a_wrong_label_column_is_told(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", rows())
    with pytest.raises(BadInput, match=r"no column 'labell'. Did you mean 'label'"):
        classification(path=path, label_column="labell", cache_dir=tmp_path / "c", **SIZES)


@pytest.mark.parametrize("source", [classification, sentences])
def test_cut_texts_leave_the_tokenizer_as_it_was(source, tmp_path):
    tokenizer = train_byte_bpe([story(words=400)], vocab_size=300)
    before = tokenizer.backend_tokenizer.to_str()
    path = write_lines(tmp_path / "a.jsonl", rows())
    made = [
        source(path=path, tokenizer=tokenizer, sequence_length=4, cache_dir=tmp_path / str(n))
        for n in range(2)
    ]
    assert tokenizer.backend_tokenizer.to_str() == before
    assert made[0].fingerprint == made[1].fingerprint


def test_the_truncation_that_a_tokenizer_came_with_stays(tmp_path):
    tokenizer = train_byte_bpe([story(words=400)], vocab_size=300)
    tokenizer.backend_tokenizer.enable_truncation(max_length=7)
    path = write_lines(tmp_path / "a.jsonl", rows())
    data = classification(path=path, tokenizer=tokenizer, sequence_length=4, cache_dir=tmp_path)
    assert data.tokenizer.backend_tokenizer.truncation["max_length"] == 7


def test_classes_of_a_given_model_keep_their_numbers(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", rows())
    found = [
        classification(path=path, classes=order, cache_dir=tmp_path / "c", **SIZES)
        for order in (("yes", "maybe", "no"), ("no", "yes"))
    ]
    assert [data.labels for data in found] == [("yes", "maybe", "no"), ("no", "yes")]
    assert set(found[0].train[:]["labels"].tolist()) == {0, 2}
    assert len({data.fingerprint for data in found}) == 2


def test_labels_that_a_given_model_does_not_know_are_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", rows())
    with pytest.raises(BadInput, match=r"(?s)data   'no', 'yes'.*model  0 'good', 1 'bad'"):
        classification(path=path, classes=("good", "bad"), cache_dir=tmp_path / "c", **SIZES)
