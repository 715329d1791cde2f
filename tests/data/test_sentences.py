import pytest

from compress.data import sentences
from compress.errors import BadInput
from tests.data.texts import write_lines

SIZES = {"vocab_size": 300, "sequence_length": 16}


def pairs(count=60):
    return [{"query": f"who ate apple {i}", "passage": f"tree {i} was green"} for i in range(count)]


def test_each_text_of_a_pair_is_a_row_and_both_share_a_part(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", pairs())
    data = sentences(
        path=path, text_columns=["query", "passage"], cache_dir=tmp_path / "c", **SIZES
    )
    kept = []
    for part in (data.train, data.validation, data.test):
        texts = [data.tokenizer.decode(r["input_ids"], skip_special_tokens=True) for r in part]
        kept.append({text.split()[-1] for text in texts if text.startswith("who")})
        assert kept[-1] == {text.split()[1] for text in texts if text.startswith("tree")}
    assert len(set.union(*kept)) == sum(map(len, kept)) == 60


def test_rows_carry_the_paddings_mask_and_no_label(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": f"short {i}"} for i in range(40)])
    data = sentences(path=path, cache_dir=tmp_path / "c", **SIZES)
    row = data.train[0]
    assert set(row) == {"input_ids", "attention_mask"} and data.labels == ()
    assert 0 < int(row["attention_mask"].sum()) < 16


def test_no_column_and_an_absent_one_are_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", pairs())
    with pytest.raises(BadInput, match="one column or more"):
        sentences(path=path, text_columns=[], cache_dir=tmp_path / "c", **SIZES)
    with pytest.raises(BadInput, match="passages"):
        sentences(path=path, text_columns=["passages"], cache_dir=tmp_path / "c", **SIZES)
