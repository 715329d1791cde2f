"""Claims about secrets: none travels with a run's files."""

import pytest

from compress.scripts.lib.secrets import MASK, masked, masked_text, masked_words


@pytest.mark.parametrize(
    "text",
    [
        "teacher.served.api_key=HIDDEN",
        "https://me:HIDDEN@host/v1",
        "https://host/v1?token=HIDDEN&x=1",
        "s3://bucket/x?X-Amz-Signature=HIDDEN",
        "Authorization: Bearer HIDDEN",
        "HF_TOKEN=HIDDEN python train.py",
        "password: HIDDEN",
        "sk-HIDDENHIDDEN123",
        "hf_HIDDENHIDDEN123",
    ],
)
def test_no_secret_stays_in_a_text(text):
    assert "HIDDEN" not in masked_text(text)
    assert MASK in masked_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "loss a token: 3.2",
        "model.layers.0.self_attn.k_proj: 4 bits",
        "http://127.0.0.1:8000/v1",
        "key=value",
        "data.path=/data/tokens.jsonl",
        "max_tokens=20",
    ],
)
def test_what_is_no_secret_stays(text):
    assert masked_text(text) == text


def test_settings_are_masked_by_their_names_however_deep():
    config = {"teacher": {"served": [{"api_key": "HIDDEN", "api_key_env": "OPENAI_API_KEY"}]}}
    found = masked(config)["teacher"]["served"][0]
    assert found == {"api_key": MASK, "api_key_env": "OPENAI_API_KEY"}
    assert config["teacher"]["served"][0]["api_key"] == "HIDDEN"


def test_special_tokens_of_a_tokenizer_are_none():
    assert masked({"eos_token": "</s>", "token": "HIDDEN"}) == {"eos_token": "</s>", "token": MASK}


def test_a_command_is_masked_word_by_word():
    assert masked_words(["a.token=HID DEN", "seed=0"]) == [f"a.token={MASK}", "seed=0"]
