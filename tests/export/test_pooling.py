"""Servers are told to pool as the model was trained: the mean over tokens."""

import json

import pytest

from compress.export.pooling import is_bare, write_pooling
from compress.export.write import export
from tests.export.fakes import quantized
from tests.export.onnx_models import tiny_bert, tiny_encoder
from tests.tiny import tiny_batch, tiny_llama


@pytest.mark.parametrize(("target", "scheme"), [
    ("vllm", "W8A8"), ("transformers", "W8A8"), ("modelopt", "FP8"),
])  # fmt: skip
def test_a_bare_model_is_written_with_the_mean_as_its_pooling(target, scheme, tmp_path):
    student = quantized(tiny_encoder(), scheme, include="encoder.*")
    place = export(
        student, target=target, path=tmp_path / "out", dtype="float32",
        example_batch={"input_ids": tiny_batch()["input_ids"]},
    ).path  # fmt: skip
    modules = json.loads((place / "modules.json").read_text())
    assert [(m["path"], m["type"].rpartition(".")[2]) for m in modules] == [
        ("", "Transformer"), ("1_Pooling", "Pooling")
    ]  # fmt: skip
    config = json.loads((place / "1_Pooling" / "config.json").read_text())
    assert config.pop("word_embedding_dimension") == 32
    assert [key for key, on in config.items() if on] == ["pooling_mode_mean_tokens"]


def test_a_model_with_a_head_has_nothing_to_pool(tmp_path):
    for model in (tiny_llama(layers=1), tiny_bert()):
        write_pooling(model, tmp_path)
        assert not is_bare(model)
    assert list(tmp_path.iterdir()) == []
    assert is_bare(tiny_llama(layers=1).model)
