"""An FP8 cache in training: what is rounded, and that generation with a cache sees the same."""

import pytest
import torch

from compress.quantize import prepare, set_enabled, start
from compress.transforms import KV_QUANTIZER, plain_state_dict
from tests.tiny import TinyData, tiny_batch, tiny_llama


def cached(**settings):
    model = tiny_llama()
    names = set(model.state_dict())
    prepare(model, scheme="W8A8", kv_cache="fp8", **settings)
    start(model, TinyData(), samples=8)
    return model, names


def test_keys_and_values_are_rounded_and_their_scales_learn():
    model, _ = cached()
    quantizer = model.model.layers[0].self_attn.get_submodule(KV_QUANTIZER)
    assert quantizer.keys.ready
    model(**tiny_batch()).loss.backward()
    assert quantizer.keys.log_step.grad.abs() > 0
    assert quantizer.values.log_step.grad.abs() > 0
    with_cache = model(tiny_batch()["input_ids"]).logits
    for part in (quantizer.keys, quantizer.values):
        part.enabled = False
    assert not torch.equal(model(tiny_batch()["input_ids"]).logits, with_cache)


def test_a_real_cache_gives_the_same_logits_token_by_token():
    model, _ = cached()
    model.eval()
    tokens = tiny_batch(rows=1, length=8)["input_ids"]
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        first = model(tokens[:, :5], use_cache=True)
        rest = model(tokens[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), whole)


@pytest.mark.parametrize("reentrant", [False])
def test_checkpointed_activations_see_the_quantised_cache(reentrant):
    model, _ = cached()
    plain = model(**tiny_batch()).loss
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    assert torch.equal(model(**tiny_batch()).loss, plain)


def test_switched_off_nothing_is_rounded():
    model, names = cached()
    set_enabled(model, False)
    tokens = tiny_batch()["input_ids"]
    assert torch.equal(model(tokens).logits, tiny_llama()(tokens).logits)
    assert set(plain_state_dict(model)) == names
