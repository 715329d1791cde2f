"""Models of both families, and masks and shrinking in one call."""

import torch
from transformers import BertConfig, BertForSequenceClassification, Qwen3Config, Qwen3ForCausalLM

from compress.prune.channel_masks import apply_plan, attach_channel_masks
from compress.prune.importance import measure
from compress.prune.plan import PruneSizes, make_plan
from compress.prune.shrink import shrink
from compress.prune.structure import structure_of
from tests.tiny import VOCAB, tiny_batch, tiny_llama

SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip


def tiny_qwen3(**changes):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(**{**SMALL, "num_key_value_heads": 2, "head_dim": 8, **changes})
    )


def tiny_bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SMALL))


def masked(model, batch=None, *, criterion="activation", **sizes):
    """The model with masks set to the plan of its own importance, and that plan."""
    wanted = PruneSizes(**{"round_to": 8, **sizes})
    structure = structure_of(model)
    wanted.check(structure)
    scores = measure(model, structure, [batch or tiny_batch()], criterion=criterion)
    plan = make_plan(structure, scores, wanted)
    apply_plan(model, structure, plan, attach_channel_masks(model, structure, wanted))
    return model, plan


def logits(model, batch=None):
    with torch.no_grad():
        return model.eval()(**(batch or tiny_batch())).logits


def gap_after_shrinking(model, plan, batch=None):
    """Largest difference of logits between the masked and the shrunk model."""
    return (logits(model, batch) - logits(shrink(model, plan), batch)).abs().max().item()


__all__ = ["gap_after_shrinking", "logits", "masked", "tiny_bert", "tiny_llama", "tiny_qwen3"]
