"""A masked model equals its shrunk model, and what is shrunk is a plain Hugging Face model."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config, Olmo2ForCausalLM

from compress.errors import UnsupportedModel, UnsupportedScheme
from compress.prune.build import calibration_batches, prune_and_shrink
from compress.prune.cuts import cuts_of
from compress.prune.plan import PruneSizes, dense_plan
from compress.prune.shrink import check_cuts, shrink
from compress.prune.structure import structure_of
from compress.quantize import prepare
from compress.quantize.fusion import input_quantizer, quantizers, weight_quantizer
from compress.sparsify.dynamics import SparseLayers
from compress.sparsify.settings import SparsitySettings
from compress.targets import choose_layers
from tests.prune.support import SMALL, gap_after_shrinking, logits, masked, tiny_bert, tiny_qwen3
from tests.tiny import TinyData, tiny_batch, tiny_llama

CUTS = {
    "ffn": {"ffn_density": 0.5},
    "heads within groups": {"heads_density": 0.5},
    "whole groups": {"kv_density": 0.5},
    "hidden": {"hidden_density": 0.5},
    "layers": {"layers": 2},
    "all": {"ffn_density": 0.5, "heads_density": 0.5, "kv_density": 0.5, "hidden_density": 0.5,
            "layers": 2},
}  # fmt: skip


@pytest.mark.parametrize("cut", CUTS)
def test_masked_model_equals_shrunk_model(cut):
    model, plan = masked(tiny_llama(layers=3), **CUTS[cut])
    assert gap_after_shrinking(model, plan) < 1e-5


@pytest.mark.parametrize("criterion", ["l1", "activation", "taylor"])
def test_masked_equals_shrunk_by_every_importance(criterion):
    model, plan = masked(tiny_llama(layers=3), criterion=criterion, **CUTS["all"])
    assert gap_after_shrinking(model, plan) < 1e-5


def test_masked_equals_shrunk_with_tied_embeddings_and_norms_of_queries():
    cuts = {"ffn_density": 0.5, "kv_density": 0.5, "layers": 2}
    for make in (lambda: tiny_llama(layers=3, tie_word_embeddings=True), tiny_qwen3):
        model, plan = masked(make(), **cuts)
        assert gap_after_shrinking(model, plan) < 1e-5
    tied, plan = masked(tiny_llama(layers=3, tie_word_embeddings=True), hidden_density=0.5)
    small = shrink(tied, plan)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert gap_after_shrinking(tied, plan) < 1e-5


def test_an_encoder_loses_feed_forward_channels():
    batch = {**tiny_batch(), "labels": torch.tensor([0, 1, 0, 1])}
    model, plan = masked(tiny_bert(), batch, ffn_density=0.5)
    assert gap_after_shrinking(model, plan, batch) < 1e-5
    assert shrink(model, plan).config.intermediate_size == 32


def test_an_encoder_says_what_it_cannot_lose():
    with pytest.raises(UnsupportedScheme, match="ties the head width"):
        masked(tiny_bert(), tiny_batch(), heads_density=0.5)
    with pytest.raises(UnsupportedModel, match="cannot be masked away while training"):
        masked(tiny_bert(), {**tiny_batch(), "labels": torch.zeros(4, dtype=torch.long)}, layers=2)


def test_config_agrees_and_the_folder_loads_anywhere(tmp_path):
    model, plan = masked(tiny_llama(layers=3), **CUTS["all"])
    small = shrink(model, plan)
    small.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    config = loaded.config
    assert (config.num_hidden_layers, config.intermediate_size, config.hidden_size) == (2, 32, 16)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (1, 1, 8)
    torch.testing.assert_close(logits(loaded), logits(small), rtol=0, atol=0)
    prompt = torch.tensor([[1, 2, 3]])
    assert loaded.generate(prompt, max_new_tokens=4, do_sample=False).shape == (1, 7)


def test_the_masked_model_is_left_untouched():
    model, plan = masked(tiny_llama(layers=3), **CUTS["all"])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shrink(model, plan)
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize("scheme", ["W8A8", "W4A16", "FP8_DYNAMIC", "NVFP4"])
def test_quantisers_shrink_with_their_layers(scheme):
    model = tiny_llama(layers=3, hidden=64)
    group = {"group_size": 16} if scheme == "W4A16" else {}
    prepare(model, scheme=scheme, **group)
    for parameter in model.parameters():  # learned scales that differ from the initial ones
        if parameter.dim() == 2 and parameter.shape[1] < 8:
            parameter.data.uniform_(-0.1, 0.1)
    calibrate(model)
    model, plan = masked(model, round_to=16, block=16, **CUTS["all"])
    small, cuts = shrink(model, plan), cuts_of(model, structure_of(model), plan)
    for new, old in enumerate(plan.layers):
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
            name = f"model.layers.{old}.{part}"
            rows, columns = list(cuts[name].rows), list(cuts[name].columns)
            dense = model.get_submodule(name).weight[rows][:, columns]
            assert small.get_submodule(f"model.layers.{new}.{part}").weight.equal(dense)
    # sums in another order may move an input's code by one step, no more
    assert (logits(model) - logits(small)).abs().mean() < 2e-3


def test_scales_that_were_one_stay_one_and_roundings_are_let_go():
    model = tiny_llama(layers=2)
    prepare(model, scheme="FP8")
    calibrate(model)
    model, plan = masked(model, ffn_density=0.5)
    with torch.no_grad():
        for layer in model.model.layers:
            weight_quantizer(layer.self_attn.q_proj).log_step.fill_(0.25)
    small = shrink(model, plan)
    for layer in small.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for first, *others in (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (mlp.gate_proj, mlp.up_proj),
        ):
            for other in others:
                assert weight_quantizer(other).log_step is weight_quantizer(first).log_step
                assert input_quantizer(other).log_step is input_quantizer(first).log_step
                assert input_quantizer(other).shared is input_quantizer(first).shared
        assert float(weight_quantizer(attention.k_proj).log_step) == 0.25  # what was learned
    theirs = {id(p) for p in model.parameters()}
    assert not any(id(p) in theirs for p in small.parameters())
    small(**tiny_batch()).loss.backward()
    readers = [q for q in quantizers(small) if getattr(q, "shared", None)]
    assert len(readers) == 10
    assert all(reader.shared._used is None for reader in readers)
    copy.deepcopy(small)


def calibrate(model):
    from compress.quantize import start

    start(model, TinyData(rows=4), samples=4)


def test_sparsity_masks_shrink_with_their_layers_and_stay_exact():
    model = tiny_llama(layers=3)
    model, plan = masked(model, block=4, **CUTS["all"])
    layers = choose_layers(model)
    SparseLayers(layers, SparsitySettings(pattern="2:4"))
    small = shrink(model, plan)
    assert gap_after_shrinking(model, plan) < 1e-5
    for name, layer in choose_layers(small).items():
        groups = (layer.weight != 0).unflatten(1, (-1, 4)).sum(-1)
        assert (groups == 2).all(), name


def test_unstructured_density_counts_within_what_stays():
    model, plan = masked(tiny_llama(layers=3), **CUTS["all"])
    SparseLayers(choose_layers(model), SparsitySettings(density=0.25))
    for layer in choose_layers(shrink(model, plan)).values():
        assert int((layer.weight != 0).sum()) * 4 == layer.weight.numel()


def test_a_cut_that_would_split_groups_is_refused_before_training():
    model = tiny_llama(layers=2, hidden=64)
    prepare(model, scheme="W4A16", group_size=32)
    structure = structure_of(model)
    sizes = PruneSizes(ffn_density=0.5, round_to=32)
    with pytest.raises(UnsupportedScheme, match=r"groups of 2 layers(.|\n)*down_proj"):
        check_cuts(model, structure, sizes)
    check_cuts(model, structure, PruneSizes(ffn_density=0.5, round_to=32, block=32))


def test_a_cut_that_would_split_two_in_four_is_refused_before_training():
    model = tiny_llama(layers=2)
    SparseLayers(choose_layers(model), SparsitySettings(pattern="2:4"))
    with pytest.raises(UnsupportedScheme, match="pattern=4"):
        check_cuts(model, structure_of(model), PruneSizes(ffn_density=0.5, round_to=8))
    check_cuts(model, structure_of(model), PruneSizes(ffn_density=0.5, round_to=8, block=4))


def test_norms_over_all_heads_together_are_refused_before_training():
    torch.manual_seed(0)
    model = Olmo2ForCausalLM(
        Olmo2Config(**SMALL, num_key_value_heads=4, pad_token_id=0, eos_token_id=1)
    )  # q_norm and k_norm span the heads
    with pytest.raises(UnsupportedModel, match=r"6 parameters(.|\n)*q_norm.*\(32,\).*\(16,\)"):
        check_cuts(model, structure_of(model), PruneSizes(kv_density=0.5))
    check_cuts(model, structure_of(model), PruneSizes(ffn_density=0.5))


@pytest.mark.parametrize("cut", CUTS)
def test_what_can_be_cut_passes_the_check_and_draws_no_numbers(cut):
    model = tiny_llama(layers=3)
    before = torch.get_rng_state()
    check_cuts(model, structure_of(model), PruneSizes(**{"round_to": 8, **CUTS[cut]}))
    assert torch.get_rng_state().equal(before)
    encoder = tiny_bert()
    check_cuts(encoder, structure_of(encoder), PruneSizes(ffn_density=0.5))


def test_widths_that_differ_between_layers_are_refused():
    model = tiny_llama(layers=2)
    plan = dense_plan(structure_of(model))
    uneven = type(plan)(**{**plan.as_dict(), "ffn": (plan.ffn[0], plan.ffn[1][:32])})
    with pytest.raises(UnsupportedScheme, match=r"ffn would keep \[32, 64\]"):
        shrink(model, uneven)


def test_pruning_before_training_is_one_call():
    rows = calibration_batches(TinyData(rows=16), samples=8)
    small = prune_and_shrink(tiny_llama(layers=3), rows, ffn_density=0.5, layers=2)
    assert (small.config.intermediate_size, small.config.num_hidden_layers) == (32, 2)
    assert all(p.requires_grad for p in small.parameters())
