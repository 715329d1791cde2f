"""What we must know of a Hugging Face model: its backbone, its head, and where the two meet."""

from typing import Any

import torch
from torch import Tensor, nn

from compress.contract import Batch, Head, Trace
from compress.errors import UnsupportedModel
from compress.taps import taps_of
from compress.transforms import INPUT_QUANTIZER


def backbone_of(model: nn.Module) -> nn.Module:
    """The part below the output head (`model.model` of a Llama).

    Raises:
        UnsupportedModel: there is no such part.
    """
    backbone = getattr(model, getattr(model, "base_model_prefix", ""), None)
    if not isinstance(backbone, nn.Module):
        raise UnsupportedModel(
            f"{type(model).__name__} has no backbone under its base_model_prefix"
        )
    return backbone


def head_of(model: nn.Module) -> nn.Module:
    """The output projection to the vocabulary.

    Raises:
        UnsupportedModel: the model has none, or one that is not linear.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear):
        raise UnsupportedModel(f"{type(model).__name__} has no linear output head")
    return head


def trace_causal_lm(model: nn.Module, batch: Batch) -> Trace:
    """One forward pass that stops before the head: logits are made later, in chunks."""
    output = backbone_of(model)(
        input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), use_cache=False
    )
    head = head_of(model)
    hidden = output.last_hidden_state
    if hasattr(head, INPUT_QUANTIZER):
        hidden = head.get_submodule(INPUT_QUANTIZER)(hidden)
    used = Head(weight_VH=head.weight, bias_V=head.bias)  # type: ignore[arg-type]
    return Trace(hidden_BLH=hidden, head=used, features=taps_of(model).take())


def trace_classifier(model: nn.Module, batch: Batch) -> Trace:
    """One forward pass of a sequence classifier; its few logits pass as (B, 1, V) with no head."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits_BV: Tensor = model(**inputs).logits
    identity = torch.eye(logits_BV.shape[-1], device=logits_BV.device, dtype=logits_BV.dtype)
    head = Head(weight_VH=identity)
    return Trace(hidden_BLH=logits_BV[:, None], head=head, features=taps_of(model).take())


@torch.no_grad()
def check_head_split(model: nn.Module) -> None:
    """Prove on four tokens that `head(backbone(x))` are the model's own logits.

    Raises:
        UnsupportedModel: they differ (soft-capped or scaled logits, for one).
    """
    device = next(model.parameters()).device
    vocab_size = int(config_of(model).vocab_size)
    tokens = torch.tensor([[0, 1, 2, 3]], device=device) % vocab_size
    training = model.training
    model.eval()
    trace = trace_causal_lm(model, {"input_ids": tokens})
    ours = trace.head(trace.hidden_BLH).float()
    theirs: Tensor = model(input_ids=tokens, use_cache=False).logits.float()
    taps_of(model).take()
    model.train(training)
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()) + 1e-6):
        gap = float((ours - theirs).abs().max())
        raise UnsupportedModel(
            f"{type(model).__name__}: its logits are not head(backbone(x)) (largest gap {gap:.3g}); "  # noqa: E501
            "models that cap or scale their logits are not supported"
        )


def config_of(model: nn.Module) -> Any:
    """The model's text configuration (multimodal models keep it one level down)."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
