"""Starts: each is a better post-training quantisation, and none changes what it should not."""

import copy

import pytest
import torch
from transformers import BertConfig, BertModel

from compress.errors import BadInput, UnsupportedModel
from compress.quantize import QuantizeInput, prepare, set_enabled, start
from compress.quantize.calibration import run_batches
from compress.quantize.fusion import weight_quantizer
from compress.quantize.smoothing import smoothing_factors
from compress.transforms import Stage, attach_transform, trained_weight, weight_before
from tests.export.fakes import FakeMask
from tests.tiny import TinyData, tiny_batch, tiny_llama

TOKENS = TinyData(seed=5).tokens


def trained_llama():
    """A model that has learnt something, with columns that stick out."""
    model = tiny_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for seed in range(30):
        tokens = TinyData(seed=seed).tokens[:16]
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] *= 20
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(model.model.layers[1].self_attn, name).weight[:, 3] /= 20
    return model


MODEL = trained_llama()


@torch.no_grad()
def distance(model):
    """Mean KL from the dense model's distributions."""
    dense = MODEL(input_ids=TOKENS).logits.log_softmax(-1)
    other = model(input_ids=TOKENS).logits.log_softmax(-1)
    return float((dense.exp() * (dense - other)).sum(-1).mean())


def started(init, scheme="W3A16:32", **settings):
    model = copy.deepcopy(MODEL)
    prepare(model, scheme=scheme)
    calibration = start(model, TinyData(), init=init, samples=32, **settings)
    return model, calibration


def test_error_feedback_is_closer_than_clipping_than_rounding():
    rtn, mse, gptq = (distance(started(init)[0]) for init in ("rtn", "mse", "gptq"))
    assert gptq < mse
    assert gptq < 0.8 * rtn


@pytest.mark.parametrize("scheme", ["W8A8", "FP8_DYNAMIC", "NVFP4", "MXFP4", "W4A8:32"])
def test_error_feedback_takes_every_kind_of_grid(scheme):
    assert distance(started("gptq", scheme)[0]) < 1.1 * distance(started("mse", scheme)[0])


def test_smoothing_helps_inputs_with_outliers():
    plain, smooth = (distance(started(init, "W4A8:32")[0]) for init in ("mse", "smoothquant"))
    assert smooth < plain


def test_smoothing_leaves_the_dense_function_alone():
    model, _ = started("smoothquant", "W8A8")
    assert not torch.equal(
        trained_weight(model.model.layers[1].self_attn.q_proj),
        MODEL.model.layers[1].self_attn.q_proj.weight,
    )
    set_enabled(model, False)
    torch.testing.assert_close(
        model(input_ids=TOKENS).logits, MODEL(input_ids=TOKENS).logits, rtol=1e-3, atol=1e-4
    )


def test_smoothing_refuses_norms_that_add_one():
    """Gemma's norm multiplies by 1 + weight: dividing its weight is no division."""
    model = copy.deepcopy(MODEL)
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            plain = norm.forward
            norm.forward = lambda x, plain=plain, norm=norm: plain(x) + plain(x) / norm.weight
    prepare(model, scheme="W8A8")
    with pytest.raises(UnsupportedModel, match="smoothquant"):
        start(model, TinyData(), init="smoothquant", samples=8)


def test_smoothing_where_nothing_can_be_smoothed_is_refused():
    model = copy.deepcopy(MODEL)
    prepare(model, scheme="W8A8", include="*o_proj")
    with pytest.raises(BadInput, match="init=gptq or mse"):
        start(model, TinyData(), init="smoothquant", samples=8)


def test_factors_follow_the_formula_and_leave_idle_columns():
    factors = smoothing_factors(
        torch.tensor([4.0, 0.0, 9.0]), torch.tensor([1.0, 1.0, 4.0]), smoothing=0.5
    )
    torch.testing.assert_close(factors, torch.tensor([2.0, 1.0, 1.5]))


def test_masked_weights_stay_masked_through_error_feedback():
    model = copy.deepcopy(MODEL)
    layer = model.model.layers[0].mlp.up_proj
    attach_transform(layer, FakeMask(layer.weight))
    mask = layer.parametrizations.weight[0].mask
    prepare(model, scheme="W4A16:32")
    start(model, TinyData(), init="gptq", samples=16)
    assert (layer.weight[~mask] == 0).all()
    assert (weight_before(layer, Stage.QUANTIZE)[mask] != 0).any()


@pytest.mark.parametrize("init", ["rtn", "mse", "percentile"])
def test_what_needs_no_data_looks_at_none(init):
    model, calibration = started(init)
    assert (calibration.samples, calibration.source) == (0, "none")
    assert weight_quantizer(model.model.layers[0].mlp.up_proj) is not None


def test_calibration_is_told_in_full():
    _, calibration = started("gptq", seed=7, source="the stories")
    assert calibration.as_dict() == {
        "init": "gptq", "source": "the stories", "samples": 32, "seed": 7
    }  # fmt: skip


def test_the_same_seed_gives_the_same_start():
    states = [started("gptq", seed=seed)[0].state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_a_start_without_data_is_refused():
    model = copy.deepcopy(MODEL)
    prepare(model, scheme="W4A16:32")
    with pytest.raises(BadInput, match="no batch"):
        start(model, TinyData(), init="gptq", samples=0)


def test_a_cache_is_refused_where_there_is_none():
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="kv_cache"):
        prepare(BertModel(config), scheme="W8A8", kv_cache="fp8")


class Padded(torch.utils.data.Dataset):
    """Rows of 8 tokens, and any number of padding positions with any token in them."""

    def __init__(self, *, padding, filler=0):
        self.padding, self.filler = padding, filler

    def __len__(self):
        return 16

    def __getitem__(self, index):
        tail = torch.full((self.padding,), self.filler)
        real = torch.ones(8, dtype=torch.long)
        return {
            "input_ids": torch.cat([TOKENS[index, :8], tail]),
            "attention_mask": torch.cat([real, torch.zeros_like(tail)]),
        }


@pytest.mark.parametrize("init", ["gptq", "smoothquant"])
def test_padding_counts_for_nothing(init):
    started_at = {}
    for padding, filler in ((0, 0), (6, 3), (6, 9)):
        model = copy.deepcopy(MODEL)
        prepare(model, scheme="W4A8:32")
        start(model, Padded(padding=padding, filler=filler), init=init, samples=16)
        layer = model.model.layers[1].mlp.down_proj
        started_at[padding, filler] = trained_weight(layer).detach().clone()
    torch.testing.assert_close(started_at[6, 3], started_at[6, 9])
    torch.testing.assert_close(started_at[0, 0], started_at[6, 3], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_static_scales_see_no_padding(observer):
    """Inputs, keys and values; a padding token that sticks out would widen each of them."""
    scales = {}
    for padding, filler in ((0, 0), (40, 127)):
        model = copy.deepcopy(MODEL)
        with torch.no_grad():
            model.model.embed_tokens.weight[127] *= 40
        prepare(
            model, scheme="W8A8", activations="static", kv_cache="fp8", observer=observer,
            observer_percentile=0.99,
        )  # fmt: skip
        start(model, Padded(padding=padding, filler=filler), samples=16)
        scales[padding] = {
            name: float(part.base_scale)
            for name, part in model.named_modules()
            if isinstance(part, QuantizeInput)
        }
    assert len(scales[0]) == 14 + 4
    assert scales[40] == pytest.approx(scales[0], rel=1e-3)


def test_a_batch_without_a_mask_is_not_read_by_the_mask_before_it():
    seen = []
    tokens = tiny_batch()["input_ids"]
    batches = [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
               {"input_ids": tokens}]  # fmt: skip
    assert run_batches(tiny_llama(), batches, lambda b: seen.append(b["attention_mask"])) == 2
    assert seen[0] is not None and seen[1] is None
