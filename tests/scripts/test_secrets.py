"""Claims about secrets: none travels with a run's files."""

import pytest

from compress.scripts.lib.config import compose, list_recipes
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
        "{'password': 'HID \\' DEN', 'x': 1}",
        '{"api_key": "HIDDEN"}',
        '{\\"api_key\\": \\"HIDDEN\\"}',
        "{'token': {'x': ['HIDDEN']}}",
        "{'keys': ['HIDDEN', 'HIDDEN']}",
        "secrets={'a': 'HIDDEN'}",
        "AWS_SECRET_ACCESS_KEY=HIDDEN",
        "AWSSecretAccessKey: HIDDEN",
        "passphrase = HIDDEN",
        "auth=HIDDEN",
        "{'auth': ('me', 'HIDDEN')}",
        "Authorization: Basic HIDDEN==",
        "sent with Bearer HIDDEN123",
        "vllm serve x --api-key HIDDEN",
        "+token=HIDDEN",
        "a=1,password=HIDDEN",
        "password=b'HIDDEN'",
        "password=123HIDDEN",
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
        "bytes_per_token: 12.5, time_to_first_token=0.3",
        "token_agreement: 0.98",
        "{'tokens': [1, 2], 'token_agreement': 0.9, 'tokenizer': 'a/b', 'keys_per_head': 'two'}",
        '{"special_tokens": ["<s>"], "eos_token": "</s>", "tokenizer.pad_token": "<pad>"}',
        "bert.encoder.layer.0.attention.self.key: 4 bits",
        "missing_keys: model.norm; unexpected keys: lm_head",
        "sort_key=name",
        "a bearer token goes along, and an unexpected token: ','",
        "KeyError: 'key'",
        "teacher.served.api_key_env=OPENAI_API_KEY",
        "author=me authentic: yes",
        "vllm serve x --max-num-batched-tokens 2048 --tokenizer a/b",
    ],
)
def test_what_is_no_secret_stays(text):
    assert masked_text(text) == text


def test_masking_again_changes_nothing():
    text = "{'password': 'a b'} api_key=abc https://u:p@h?token=t Authorization: Bearer abc"
    assert masked_text(masked_text(text)) == masked_text(text)


def test_settings_are_masked_by_their_names_however_deep():
    config = {"teacher": {"served": [{"api_key": "HIDDEN", "api_key_env": "OPENAI_API_KEY"}]}}
    found = masked(config)["teacher"]["served"][0]
    assert found == {"api_key": MASK, "api_key_env": "OPENAI_API_KEY"}
    assert config["teacher"]["served"][0]["api_key"] == "HIDDEN"


@pytest.mark.parametrize("name", [
    "apikey", "api-key", "openai_api_key", "AWSSecretAccessKey", "apiKey", "aws_secret_access_key",
    "passphrase", "auth", "bearer", "hf_token", "accessToken", "secrets", "keys", "access_tokens",
    "private_key", "credentials",
])  # fmt: skip
def test_whatever_stands_below_a_secrets_name_is_masked(name):
    for value in ("HIDDEN", {"x": "HIDDEN", "deep": {"y": ["HIDDEN"]}}, ["HIDDEN"], ("HIDDEN",)):
        assert "HIDDEN" not in str(masked({"logger": {name: value}})), value
    assert masked({name: None, "on": True}) == {name: None, "on": True}


def test_numbers_are_masked_below_a_password_alone():
    plain = {"password": 1234, "bytes_per_token": 12.5, "key": 3}
    assert masked(plain) == {**plain, "password": MASK}


@pytest.mark.parametrize("plain", [
    {"tokens": ["a"], "special_tokens": {"x": "<s>"}, "token_agreement": {"low": "0.9"}},
    {"tokenizer": "a/b", "keys_per_head": ["two"], "missing_keys": ["a"], "author": "me"},
    {"overrides": {"*.self.key": "W8A16", "k_proj": "W4A16"}, "private_key_path": "/etc/key"},
    {"eos_token": "</s>", "api_key_env": "OPENAI_API_KEY", "prompt_tokens": "32-128"},
])  # fmt: skip
def test_names_that_only_look_like_a_secrets_stay_readable(plain):
    assert masked(plain) == plain


@pytest.mark.parametrize("recipe", list_recipes())
def test_no_setting_of_a_recipe_is_masked(recipe):
    from omegaconf import OmegaConf

    words = ["teacher=embedded"] if "teacher" in recipe else []
    plain = OmegaConf.to_container(compose([f"recipe={recipe}", *words]))
    assert masked(plain) == plain


def test_special_tokens_of_a_tokenizer_are_none():
    assert masked({"eos_token": "</s>", "token": "HIDDEN"}) == {"eos_token": "</s>", "token": MASK}


def test_a_command_is_masked_word_by_word():
    assert masked_words(["a.token=HID DEN", "seed=0"]) == [f"a.token={MASK}", "seed=0"]
