import pytest

from compress.data import hub
from compress.errors import BadInput
from tests.data.texts import story_rows, write_lines

SIZES = {"vocab_size": 300, "sequence_length": 16}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    path = tmp_path / "set"
    path.mkdir()
    write_lines(path / "train.jsonl", story_rows())
    write_lines(path / "validation.jsonl", story_rows(10))
    return path


def test_a_local_folder_is_a_data_set(folder, tmp_path):
    data = hub(name=str(folder), cache_dir=tmp_path / "c", **SIZES)
    assert sum(data.counts[part]["documents"] for part in data.counts) == 60


def test_a_split_of_its_own_is_held_out(folder, tmp_path):
    data = hub(name=str(folder), validation_split="validation", cache_dir=tmp_path / "c", **SIZES)
    assert data.counts["validation"]["documents"] == 10


def test_streaming_gives_the_same_tokens(folder, tmp_path):
    whole = hub(name=str(folder), max_rows=40, cache_dir=tmp_path / "c", **SIZES)
    streamed = hub(name=str(folder), streaming=True, max_rows=40, cache_dir=tmp_path / "d", **SIZES)
    assert streamed.fingerprint == whole.fingerprint
    assert streamed.counts == whole.counts


def test_streaming_without_an_end_is_refused(folder):
    with pytest.raises(BadInput, match="max_rows"):
        hub(name=str(folder), streaming=True)


def test_a_wrong_column_is_told_with_the_near_one(folder, tmp_path):
    with pytest.raises(BadInput, match=r"no column 'txt'. Did you mean 'text'"):
        hub(name=str(folder), text_column="txt", cache_dir=tmp_path / "c", **SIZES)


@pytest.mark.parametrize("wrong", [{"split": "trian"}, {"name": "nobody/nothing-of-this-name"}])
def test_what_cannot_be_loaded_is_told_with_the_way_out(folder, tmp_path, wrong, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)  # else the hub is tried for long
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"cannot load the data set.*data=text"):
        hub(**({"name": str(folder)} | wrong), cache_dir=tmp_path / "c", **SIZES)


@pytest.mark.parametrize(
    ("split", "held_out"),
    [("train", "train"), ("train[:90%]", "train[10%:]"), ("train[:-5%]", "train[90%:]"),
     ("train[:1000]", "train[500:2000]"), ("train", "train[:10%]"), ("all", "validation"),
     ("validation+train[:50%]", "train[40%:60%]")],
)  # fmt: skip
def test_slices_that_share_rows_are_refused(split, held_out):
    with pytest.raises(BadInput, match=r"share rows of .*do not meet.*validation_share"):
        hub(name="never/loaded", split=split, validation_split=held_out)


@pytest.mark.parametrize(
    ("split", "held_out", "kept"),
    [("train[:90%]", "train[90%:]", 6), ("train[10:]", "train[:10]", 10),
     ("train[:-20]", "train[-20:]", 20), ("train[:25%]+train[75%:]", "train[25%:75%]", 30)],
)  # fmt: skip
def test_slices_that_only_touch_are_taken(folder, tmp_path, split, held_out, kept):
    data = hub(
        name=str(folder), split=split, validation_split=held_out, test_share=0,
        cache_dir=tmp_path / "c", **SIZES,
    )  # fmt: skip
    assert data.counts["validation"]["documents"] == kept
    assert data.counts["train"]["documents"] == 60 - kept


def test_a_slice_that_is_none_is_told_by_the_loader(folder, tmp_path):
    with pytest.raises(BadInput, match="cannot load the data set"):
        hub(name=str(folder), split="train[a]", validation_split="train", cache_dir=tmp_path / "c")
