import copy
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from compress.data.tokenizer import load_tokenizer, tokenizer_digest, train_byte_bpe
from compress.errors import BadInput
from tests.data.texts import story


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_bpe([story(words=400)], vocab_size=300)


@pytest.mark.parametrize("text", ["def f(x):\n\treturn x\n", "Größe 北京 🌲", "\x00\x7f", ""])
def test_every_text_comes_back_byte_for_byte(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_vocabulary_has_the_size_that_was_asked_for(tokenizer):
    assert len(tokenizer) == 300
    assert tokenizer.eos_token_id == 0
    assert tokenizer.pad_token_id == 1


def test_it_saves_and_loads_by_auto_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = story(words=30, seed=2)
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.eos_token_id == tokenizer.eos_token_id
    assert tokenizer_digest(loaded) == tokenizer_digest(tokenizer)
    assert load_tokenizer(str(tmp_path))("a b")["input_ids"] == tokenizer("a b")["input_ids"]


def test_another_process_trains_the_same_tokenizer(tokenizer):
    code = (
        "from compress.data.tokenizer import *; from tests.data.texts import story\n"
        "print(tokenizer_digest(train_byte_bpe([story(words=400)], vocab_size=300)))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == tokenizer_digest(tokenizer)


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(BadInput, match="258 or more"):
        train_byte_bpe(["a"], vocab_size=257)


def test_a_folder_without_a_tokenizer_is_told(tmp_path):
    with pytest.raises(BadInput, match="no tokenizer at"):
        load_tokenizer(str(tmp_path / "none"))


def test_how_it_was_called_last_does_not_change_the_digest(tokenizer):
    called = copy.deepcopy(tokenizer)
    called("a tree walks over a stone", truncation=True, max_length=2)
    called(["a", "a tree"], padding=True)
    assert tokenizer_digest(called) == tokenizer_digest(tokenizer)


@pytest.mark.parametrize(
    ("name", "value"),
    [("bos_token", "<|pad|>"), ("truncation_side", "left"), ("split_special_tokens", True)],
)
def test_what_changes_the_ids_changes_the_digest(tokenizer, name, value):
    other = copy.deepcopy(tokenizer)
    setattr(other, name, value)
    assert tokenizer_digest(other) != tokenizer_digest(tokenizer)
