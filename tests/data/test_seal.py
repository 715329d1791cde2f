import pytest

from compress.data import seal as sealing
from compress.data import text_files
from compress.data.seal import check_seal, digest_of, seal
from compress.errors import BadInput
from tests.data.texts import story_rows, write_lines


def test_every_changed_file_is_named(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    sealed = seal(tmp_path, ["a", "b", "c", "d"])
    check_seal(tmp_path, sealed)
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_bytes(b"b" * 50)
    (tmp_path / "c").write_bytes(b"c" * 99 + b"x")
    with pytest.raises(BadInput) as refused:
        check_seal(tmp_path, sealed)
    for words in ("a is missing", "b has 50 bytes instead of 100", "c was changed", "delete"):
        assert words in str(refused.value)
    assert "; d " not in str(refused.value)


def test_of_a_large_file_the_ends_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(sealing, "WHOLE_BYTES", 4000)
    monkeypatch.setattr(sealing, "SAMPLE_BYTES", 16)
    path = tmp_path / "large"
    path.write_bytes(bytes(5000))
    before = digest_of(path)
    for place in (0, 4999):
        damaged = bytearray(5000)
        damaged[place] = 1
        path.write_bytes(damaged)
        assert digest_of(path) != before


@pytest.mark.parametrize("what", ["train.arrow", "facts.json", "tokenizer/tokenizer.json"])
def test_a_damaged_cache_is_told_and_never_read(tmp_path, what):
    path = write_lines(tmp_path / "a.jsonl", story_rows())
    sizes = {"vocab_size": 300, "sequence_length": 16, "cache_dir": tmp_path / "c"}
    data = text_files(path=path, **sizes)
    damaged = tmp_path / "c" / data.fingerprint / what
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(BadInput, match=r"damaged.*delete that folder"):
        text_files(path=path, **sizes)
