"""What the runtime merges has one scheme and, where it keeps one scale, one scale."""

import pytest

from compress.errors import UnsupportedScheme
from compress.export.gate import gate
from compress.quantize.fusion import fusions, input_quantizer
from compress.quantize.prepare import prepare
from tests.export.onnx_models import tiny_bert

SELF = "bert.encoder.layer.0.attention.self"
MERGED = [f"{SELF}.{last}" for last in ("query", "key", "value")]


def test_an_encoders_query_key_and_value_are_one_matrix():
    bert = tiny_bert()
    assert fusions(bert, dict(bert.named_modules())) == [MERGED]


def test_an_encoders_query_key_and_value_share_a_static_input_scale():
    bert = tiny_bert()
    layers = prepare(bert, scheme="W8A8", activations="static")
    assert len({id(input_quantizer(layers[name]).log_step) for name in MERGED}) == 1


def test_an_encoders_query_may_not_differ_from_its_key():
    with pytest.raises(UnsupportedScheme, match=r"attention\.self\.key"):
        prepare(tiny_bert(), scheme="W8A8", overrides={"*query": "W4A16:32"})
    bert = tiny_bert()
    prepare(bert, scheme="W8A8", exclude="*query")
    with pytest.raises(UnsupportedScheme, match=r"attention\.self\.query +dense"):
        gate(bert, target="vllm")
