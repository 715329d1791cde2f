"""Importance finds what was made important, by every criterion."""

import pytest
import torch

from compress.errors import BadInput
from compress.prune.importance import measure
from compress.prune.structure import structure_of
from tests.prune.support import masked, tiny_llama
from tests.tiny import tiny_batch

CRITERIA = ["l1", "activation", "taylor"]


def scores_of(model, criterion="activation"):
    return measure(model, structure_of(model), [tiny_batch()], criterion=criterion)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_silenced_channels_and_heads_score_lowest(criterion):
    model = tiny_llama()
    layer = model.model.layers[1]
    with torch.no_grad():
        layer.mlp.gate_proj.weight[[3, 9]] *= 1e-3
        layer.mlp.up_proj.weight[[3, 9]] *= 1e-3
        layer.mlp.down_proj.weight[:, [3, 9]] *= 1e-3
        layer.self_attn.v_proj.weight[8:] *= 1e-3  # the second group: heads 2 and 3
        layer.self_attn.q_proj.weight[16:] *= 1e-3
        layer.self_attn.o_proj.weight[:, 16:] *= 1e-3
    scores = scores_of(model, criterion)
    assert sorted(scores.ffn[1].argsort()[:2].tolist()) == [3, 9]
    assert sorted(scores.heads[1].argsort()[:2].tolist()) == [2, 3]


def test_block_influence_is_least_where_a_layer_changes_nothing():
    model = tiny_llama(layers=3)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    scores = scores_of(model)
    assert int(scores.layers.argmin()) == 1
    assert float(scores.layers[1]) == pytest.approx(0.0, abs=1e-5)


def test_taylor_is_the_loss_change_of_leaving_a_channel_out():
    """|sum of gradient x weight| predicts, to first order, what masking the channel costs."""
    model, batch = tiny_llama(), tiny_batch()
    scores = scores_of(model, "taylor").ffn[0]
    weight = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        before = model(**batch).loss
        shrunk = weight[:, 5].clone()
        weight[:, 5] *= 1 - 1e-2
        change = (model(**batch).loss - before).abs() / 1e-2
        weight[:, 5] = shrunk
    assert float(scores[5]) == pytest.approx(float(change), rel=0.1, abs=1e-5)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_what_is_masked_stays_masked(criterion):
    model, plan = masked(tiny_llama(), criterion=criterion, ffn_density=0.5, heads_density=0.5)
    scores = scores_of(model, criterion)
    for layer in (0, 1):
        dead = set(range(64)) - set(plan.ffn[layer])
        order = scores.ffn[layer].argsort().tolist()
        assert set(order[: len(dead)]) == dead


def test_measuring_leaves_the_model_as_it_was():
    model = tiny_llama().train()
    random = torch.get_rng_state()
    scores_of(model, "taylor")
    assert model.training and all(p.grad is None for p in model.parameters())
    assert torch.get_rng_state().equal(random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_unknown_criterion_and_no_data_are_refused():
    with pytest.raises(BadInput, match="Did you mean 'taylor'"):
        scores_of(tiny_llama(), "tailor")
    with pytest.raises(BadInput, match="at least one batch"):
        measure(tiny_llama(), structure_of(tiny_llama()), [])


def test_a_compiled_model_is_measured_all_the_same():
    """Hooks set after compiling never fire in a compiled call: measuring goes round it."""
    model = tiny_llama()
    expected = scores_of(model)
    model.compile(backend="eager")
    model(**tiny_batch())
    torch.testing.assert_close(scores_of(model).ffn, expected.ffn)
    torch._dynamo.reset()
