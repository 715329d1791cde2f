import random
import shutil

import pytest
import torch

from compress.data import python_stdlib
from compress.errors import BadInput
from tests.data.texts import story
from tests.tiny import tiny_llama


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    for number in range(40):
        file = folder / f"package{number % 4}" / f"module{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(story(words=150, seed=number))
    (folder / "tests").mkdir()
    (folder / "tests" / "left_out.py").write_text("secret " * 500)
    (folder / "latin.py").write_bytes(b"# Gr\xf6\xdfe\n")
    (folder / "again.py").write_text(story(words=150, seed=0))
    (folder / "empty.py").write_text("")
    return folder


SIZES = {"vocab_size": 300, "sequence_length": 16, "validation_share": 0.1, "test_share": 0.1}


def test_parts_are_rows_of_one_length_in_torch_format(root, tmp_path):
    data = python_stdlib(roots=str(root), cache_dir=tmp_path / "cache", **SIZES)
    for part in (data.train, data.validation, data.test):
        rows = part[:2]
        assert rows["input_ids"].shape == (2, 16)
        assert rows["input_ids"].dtype == torch.int64
        assert torch.equal(rows["input_ids"], rows["labels"])
    assert data.counts["skipped"] == {"undecodable": 1, "duplicate": 1, "empty": 1}
    assert sum(data.counts[p]["documents"] for p in ("train", "validation", "test")) == 40
    assert len(data.tokenizer) == 300


def test_excluded_folders_are_not_read(root, tmp_path):
    data = python_stdlib(roots=str(root), cache_dir=tmp_path / "cache", **SIZES)
    with_tests = python_stdlib(roots=str(root), exclude=(), cache_dir=tmp_path / "cache", **SIZES)
    assert "secret" not in data.tokenizer.decode(data.train[:]["input_ids"].flatten())
    assert with_tests.fingerprint != data.fingerprint


def test_the_fingerprint_follows_the_content_not_the_place(root, tmp_path):
    first = python_stdlib(roots=str(root), cache_dir=tmp_path / "cache", **SIZES)
    shutil.copytree(root, tmp_path / "elsewhere")
    same = python_stdlib(roots=[str(tmp_path / "elsewhere")], cache_dir=tmp_path / "b", **SIZES)
    assert same.fingerprint == first.fingerprint
    assert torch.equal(same.train[:]["input_ids"], first.train[:]["input_ids"])
    (root / "package0" / "module0.py").write_text(story(words=150, seed=99))
    changed = python_stdlib(roots=str(root), cache_dir=tmp_path / "cache", **SIZES)
    assert changed.fingerprint != first.fingerprint


def test_the_second_start_builds_nothing(root, tmp_path, monkeypatch):
    first = python_stdlib(roots=str(root), cache_dir=tmp_path / "cache", **SIZES)
    monkeypatch.setattr("compress.data.prepare._build", None)
    second = python_stdlib(roots=str(root), cache_dir=tmp_path / "cache", **SIZES)
    assert torch.equal(second.validation[:]["input_ids"], first.validation[:]["input_ids"])
    assert second.counts == first.counts


def test_a_given_tokenizer_is_used_as_it_is(root, tmp_path):
    own = python_stdlib(roots=str(root), cache_dir=tmp_path / "cache", **SIZES).tokenizer
    again = python_stdlib(roots=str(root), cache_dir=tmp_path / "c", tokenizer=own, **SIZES)
    assert again.tokenizer is own


def test_fewer_bytes_take_a_part_of_what_more_bytes_take(root, tmp_path):
    from compress.data.python_stdlib import EXCLUDED, _limit, _read

    files, _ = _read([root], frozenset(EXCLUDED))
    fewer = {file.name for file in _limit(files, 8000, seed=0)}
    random.Random(0).shuffle(files)
    more = {file.name for file in _limit(files, 16000, seed=0)}
    assert fewer < more


def test_too_little_text_is_told_with_the_way_out(root, tmp_path):
    with pytest.raises(BadInput, match=r"too small.*sequence_length"):
        python_stdlib(
            roots=str(root), cache_dir=tmp_path / "cache", **{**SIZES, "sequence_length": 50_000}
        )
    assert list((tmp_path / "cache").glob("[!.]*")) == []


def test_a_root_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(BadInput, match="nowhere"):
        python_stdlib(roots=str(tmp_path / "nowhere"), cache_dir=tmp_path / "cache")


def test_a_model_with_too_few_tokens_or_positions_is_refused(root, tmp_path):
    data = python_stdlib(roots=str(root), cache_dir=tmp_path / "cache", **SIZES)
    data.check_model(tiny_llama(vocab_size=300).config)
    with pytest.raises(BadInput, match=r"300 tokens.*299.*16 tokens.*8 positions"):
        data.check_model(tiny_llama(vocab_size=299, max_position_embeddings=8).config)
