"""What we must know of a Hugging Face model: its backbone, its head, and where the two meet."""

from typing import Any

import torch
from torch import Tensor, nn

from compress.contract import Batch, Head, Trace
from compress.errors import UnsupportedModel
from compress.taps import EMBEDDING, taps_of
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


def layer_list_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Dotted name and list of the model's blocks (`model.layers`, `bert.encoder.layer`).

    Raises:
        UnsupportedModel: no module list has as many entries as the configuration has layers.
    """
    count = int(config_of(model).num_hidden_layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UnsupportedModel(
        f"{type(model).__name__} keeps no list of its {count} layers; name pairs of modules instead"
    )


def head_of(model: nn.Module) -> nn.Module:
    """The output projection to the vocabulary.

    Raises:
        UnsupportedModel: the model has none, or one that is not linear.
    """
    get: Any = getattr(model, "get_output_embeddings", None)
    head = get() if get else None
    if not isinstance(head, nn.Linear):
        raise UnsupportedModel(f"{type(model).__name__} has no linear output head")
    return head


PASS = "_compress_pass"
"""Where a sharded model keeps its `backbone_pass`, with the gathering of its weights around it."""


def backbone_pass(model: nn.Module, batch: Batch) -> Tensor:
    """The last hidden states of one forward pass."""
    output = backbone_of(model)(
        input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), use_cache=False
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def trace_causal_lm(model: nn.Module, batch: Batch) -> Trace:
    """One forward pass that stops before the head: logits are made later, in chunks."""
    gathering = model.__dict__.get(PASS)
    hidden = backbone_pass(model, batch) if gathering is None else gathering(batch)
    head = head_of(model)
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


def trace_embedding(model: nn.Module, batch: Batch) -> Trace:
    """One forward pass of an encoder; a sequence's embedding is the mean of its last hidden states.

    It passes as (B, 1, H) and as the feature `embedding`; there are no logits to speak of.
    """
    mask_BL = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    hidden_BLH: Tensor = model(**inputs).last_hidden_state
    weight_BL1 = mask_BL[..., None].to(hidden_BLH.dtype)
    mean_B1H = (hidden_BLH * weight_BL1).sum(1, keepdim=True) / weight_BL1.sum(1, keepdim=True)
    identity = torch.eye(mean_B1H.shape[-1], device=mean_B1H.device, dtype=mean_B1H.dtype)
    features = {**taps_of(model).take(), EMBEDDING: mean_B1H}
    return Trace(hidden_BLH=mean_B1H, head=Head(weight_VH=identity), features=features)


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
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
