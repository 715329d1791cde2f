"""Adapters: part of the weight before it is rounded, and nothing else learns."""

import pytest
import torch

from compress.errors import BadInput
from compress.quantize import prepare, start
from compress.quantize.adapters import LowRankAdapter, adapt
from compress.transforms import Stage, trained_weight, transforms_of, weight_before
from tests.tiny import TinyData, tiny_batch, tiny_llama


def adapted(**settings):
    model = tiny_llama()
    layers = prepare(model, scheme="W4A16:32", **settings)
    adapt(model, layers, rank=4)
    return model, layers


def test_nothing_changes_at_first():
    plain = tiny_llama()
    prepare(plain, scheme="W4A16:32")
    model, _ = adapted()
    tokens = tiny_batch()["input_ids"]
    assert torch.equal(model(tokens).logits, plain(tokens).logits)


def test_the_adapter_stands_before_the_quantiser():
    _, layers = adapted()
    chain = transforms_of(layers["model.layers.0.mlp.up_proj"])
    assert [t.stage for t in chain] == [Stage.ADAPT, Stage.QUANTIZE]


def test_only_adapters_and_scales_learn():
    model, layers = adapted()
    model(**tiny_batch()).loss.backward()
    learning = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {n.rpartition(".")[2] for n in learning} <= {"up_OR", "down_RI", "log_step"}
    assert len([n for n in learning if n.endswith("up_OR")]) == len(layers)


def test_error_feedback_goes_to_the_weight_beneath():
    model, layers = adapted()
    layer = layers["model.layers.0.mlp.down_proj"]
    with torch.no_grad():
        transforms_of(layer)[0].up_OR.normal_(std=0.1)
    before = trained_weight(layer).clone()
    start(model, TinyData(), init="gptq", samples=16)
    assert not torch.equal(trained_weight(layer), before)
    added = transforms_of(layer)[0](torch.zeros_like(before))
    torch.testing.assert_close(weight_before(layer, Stage.QUANTIZE), trained_weight(layer) + added)


@pytest.mark.parametrize("rank", [0, 9])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(BadInput, match="8 x 32 takes 1 to 8"):
        LowRankAdapter(torch.randn(8, 32), rank=rank)
