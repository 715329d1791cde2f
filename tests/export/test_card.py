"""The model card says how to load what it lies beside."""

import pytest
import yaml

from compress.export.card import CardFacts, model_card
from compress.export.plan import collect_plan
from compress.export.write import WRITERS
from tests.export.fakes import quantized
from tests.export.onnx_models import tiny_bert
from tests.tiny import tiny_llama


def card_of(model, target="vllm", **facts):
    return model_card(
        collect_plan(model), CardFacts(**facts), target=target, dtype="float32", weight_bytes=1
    )


def header_of(model, target):
    """What the hub reads of the card."""
    return yaml.safe_load(card_of(model, target, base_model="owner/name").split("---\n")[1])


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
    assert ("the mean of its last hidden states" in card) == (kind == "BertModel")


@pytest.mark.parametrize(
    ("target", "library", "tag"),
    [("vllm", "transformers", "compressed-tensors"), ("modelopt", "Model Optimizer", "ModelOpt"),
     ("transformers", "transformers", "compressed-tensors"), ("tensorrt", "onnx", "onnx"),
     ("pt2", "pytorch", "pt2")],
)  # fmt: skip
def test_the_hub_is_told_what_loads_the_folder(target, library, tag):
    header = header_of(quantized(tiny_llama(layers=1), "W8A8"), target)
    assert (header["library_name"], header["tags"]) == (library, [tag])
    assert header["base_model_relation"] == "quantized"


@pytest.mark.parametrize("target", WRITERS)
def test_a_dense_model_is_called_neither_quantised_nor_compressed_tensors(target):
    header = header_of(tiny_llama(layers=1), target)
    assert header["base_model_relation"] == "finetune"
    assert "dense" in header["tags"] and "compressed-tensors" not in header["tags"]


def test_a_target_of_ones_own_claims_no_library():
    header = header_of(quantized(tiny_llama(layers=1), "W8A8"), "mine")
    assert "library_name" not in header and header["tags"] == ["mine"]
