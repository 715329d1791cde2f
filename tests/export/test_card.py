"""The model card says how to load what it lies beside."""

import pytest

from compress.export.card import CardFacts, model_card
from compress.export.plan import collect_plan
from tests.export.onnx_models import tiny_bert
from tests.tiny import tiny_llama


def card_of(model, target="vllm"):
    return model_card(
        collect_plan(model), CardFacts(), target=target, dtype="float32", weight_bytes=1
    )


def test_a_classifier_is_loaded_and_asked_as_one():
    card = card_of(tiny_bert())
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert "llm.classify" in card and "llm.generate" not in card
    assert "pipeline_tag: text-classification" in card


def test_a_language_model_generates():
    card = card_of(tiny_llama())
    assert "AutoModelForCausalLM.from_pretrained" in card and "llm.generate" in card


@pytest.mark.parametrize(
    ("kind", "loader", "asked"),
    [("BertForMaskedLM", "AutoModelForMaskedLM", None), ("BertModel", "AutoModel", "llm.embed")],
)
def test_an_encoder_is_no_language_model(kind, loader, asked):
    import transformers

    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    card = card_of(getattr(transformers, kind)(config))
    assert f"{loader}.from_pretrained" in card and "CausalLM" not in card
    assert ("from vllm" in card) == (asked is not None)
    assert asked is None or asked in card
