"""A whole model: which layers, tied scales, overrides, calibration."""

import copy

import pytest
import torch
import transformers

from compress.errors import BadInput, UnsupportedModel, UnsupportedScheme
from compress.quantize import (
    SCHEMES,
    QuantizeInput,
    calibrate,
    calibration_batches,
    prepare,
    set_enabled,
    start,
)
from compress.quantize.fusion import input_quantizer, weight_quantizer
from tests.tiny import TinyData, tiny_batch, tiny_llama


def wide_llama():
    return tiny_llama(layers=1, hidden=128)


def groups(scheme):
    return {"group_size": 32} if scheme.startswith(("W4", "W3", "W2")) else {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_runs_and_learns(scheme):
    model = wide_llama()
    prepare(
        model,
        scheme=scheme,
        exclude="*k_proj,*v_proj" if scheme == "FP8_BLOCK" else None,
        **groups(scheme),
    )
    start(model, TinyData(), samples=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch = tiny_batch()
    losses = []
    for _ in range(6):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_output_head_stays_dense():
    assert "lm_head" not in prepare(tiny_llama(), scheme="W8A8")


def test_switched_off_the_model_is_the_dense_one():
    model = tiny_llama()
    dense = copy.deepcopy(model)
    prepare(model, scheme="W4A8", group_size=32)
    tokens = tiny_batch()["input_ids"]
    assert not torch.equal(model(tokens).logits, dense(tokens).logits)
    set_enabled(model, False)
    assert torch.equal(model(tokens).logits, dense(tokens).logits)


def test_overrides_choose_by_name_and_none_stays_dense():
    model = tiny_llama()
    layers = prepare(
        model,
        scheme="W8A8",
        overrides={"*mlp*": "W4A16:32", "*down_proj": None, "*layers.1*": "W8A16:-1"},
    )
    bits = {
        n: (weight_quantizer(m).args.num_bits, weight_quantizer(m).args.strategy)
        for n, m in layers.items()
    }
    assert bits["model.layers.0.mlp.up_proj"] == (4, "group")
    assert bits["model.layers.0.self_attn.q_proj"] == (8, "channel")
    assert "model.layers.0.mlp.down_proj" not in bits
    assert bits["model.layers.1.mlp.down_proj"] == (8, "channel")


def test_an_override_that_fits_nothing_is_refused():
    with pytest.raises(BadInput, match="nowhere"):
        prepare(tiny_llama(), overrides={"*nowhere": "W8A8"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"include": "*q_proj"},
            r"'\*down_proj': W4A16:32 .* and 1 more: not in include=\['\*q_pro",
        ),
        ({"exclude": "*down_proj"}, r"'\*down_proj': .*: taken out by exclude=\['\*down_proj'\]"),
        ({"overrides": {"lm_head": "W4A16:32"}}, "1 of 1 overrides .*\n.*the output head stays"),
        ({"overrides": {"lm_head": "W4A16:32", "*mlp*": "W8A16"}}, "1 of 2 overrides .*\n.*head"),
    ],
)
def test_an_override_for_layers_that_stay_dense_is_refused(settings, said):
    told = {"overrides": {"*down_proj": "W4A16:32"}, **settings}
    with pytest.raises(BadInput, match=said):
        prepare(tiny_llama(), scheme="W8A16:32", **told)


def test_every_override_that_reaches_nothing_is_listed():
    told = {"*down_proj": "W4A16:32", "*o_proj": "W4A16:32", "*q_proj": None}
    with pytest.raises(BadInput, match="2 of 3 overrides") as caught:
        prepare(tiny_llama(), include="*up_proj", overrides=told)
    assert [line.split("'")[1] for line in str(caught.value).split("\n")[1:3]] == [
        "*down_proj", "*o_proj"
    ]  # fmt: skip


def test_what_stays_dense_may_be_said_to_stay_dense():
    assert "lm_head" not in prepare(tiny_llama(), overrides={"lm_head": None})


@pytest.mark.parametrize(
    ("preset", "dynamic"),
    [("W8A8", False), ("W4A8:32", False), ("W4A16:32", None), ("NVFP4", "local")],
)
def test_activations_hold_for_overrides_that_quantise_them(preset, dynamic):
    layers = prepare(tiny_llama(), scheme="W8A8", activations="static", overrides={"*mlp*": preset})
    inputs = {name: input_quantizer(layer) for name, layer in layers.items()}
    assert all(q.args.dynamic is False for n, q in inputs.items() if "mlp" not in n)
    assert {q and q.args.dynamic for n, q in inputs.items() if "mlp" in n} == {dynamic}


def test_fused_layers_must_share_their_scheme():
    with pytest.raises(UnsupportedScheme, match="q_proj"):
        prepare(tiny_llama(), scheme="W8A8", overrides={"*q_proj": "W8A16:32"})


@pytest.mark.parametrize("scheme", ["FP8", "NVFP4"])
def test_fused_layers_share_the_scale_that_the_runtime_shares(scheme):
    model = wide_llama()
    layers = prepare(model, scheme=scheme)
    name = {"FP8": "scale", "NVFP4": "global_scale"}[scheme]
    attention = [m for n, m in layers.items() if n.endswith(("q_proj", "k_proj", "v_proj"))]
    scales = [weight_quantizer(m).scheme().tensors[name] for m in attention]
    assert torch.equal(scales[0], scales[1])
    assert torch.equal(scales[0], scales[2])


def test_static_inputs_of_fused_layers_learn_one_scale():
    model = tiny_llama()
    layers = prepare(model, scheme="W8A8", activations="static")
    start(model, TinyData(), samples=8)
    attention = [m for n, m in layers.items() if n.startswith("model.layers.0.self_attn")][:3]
    with torch.no_grad():
        input_quantizer(attention[0]).log_step.fill_(0.2)
    scales = {input_quantizer(m).scheme().tensors["scale"].item() for m in attention}
    assert len(scales) == 1


def test_calibration_draws_the_same_rows_for_the_same_seed():
    data = TinyData(rows=100)
    draws = [
        torch.cat([b["input_ids"] for b in calibration_batches(data, samples=20, seed=seed)])
        for seed in (3, 3, 4)
    ]
    assert draws[0].shape[0] == 20
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_calibration_without_samples_is_refused():
    model = tiny_llama()
    prepare(model, scheme="W8A8", activations="static")
    with pytest.raises(BadInput, match="no batch"):
        calibrate(model, [])


def test_layers_that_read_one_tensor_round_it_once(monkeypatch):
    model = wide_llama()
    layers = prepare(model, scheme="W8A8")
    calls = []
    honest = QuantizeInput._rounded
    monkeypatch.setattr(
        QuantizeInput, "_rounded", lambda self, x: calls.append(self.name) or honest(self, x)
    )
    first = model(**tiny_batch()).loss
    endings = [name.rpartition(".")[2] for name in calls]
    assert endings == ["q_proj", "o_proj", "gate_proj", "down_proj"]
    for layer in layers.values():
        input_quantizer(layer).shared = None
    assert torch.equal(model(**tiny_batch()).loss, first)
    assert len(calls) == 4 + 7


def test_what_was_rounded_for_fused_layers_is_not_kept():
    model = wide_llama()
    layers = prepare(model, scheme="W8A8")
    model(**tiny_batch())
    kept = [input_quantizer(m).shared for m in layers.values()]
    assert all(s is None or (s._values is None and s._used is None) for s in kept)


def test_stacked_experts_are_refused_with_their_share():
    config = transformers.Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, moe_intermediate_size=32,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
        num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match=r"stacked experts hold \d+% of the weights"):
        prepare(transformers.Qwen3MoeForCausalLM(config), scheme="W8A8")


def test_a_model_without_linear_layers_is_refused_by_what_it_has():
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(UnsupportedModel, match=r"no Linear is left.*Conv1D"):
        prepare(transformers.GPT2LMHeadModel(config), scheme="W8A8")


def test_nothing_left_to_quantise_is_refused():
    with pytest.raises(UnsupportedModel, match="no Linear is left"):
        prepare(tiny_llama(), scheme="W8A8", exclude="*proj")
