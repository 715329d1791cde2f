"""Where a Hugging Face model keeps its widths: names of layers by their part, for two families.

Legend: F feed-forward channels, Q query heads, K key-value heads (KV groups), D head width,
H hidden width.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from compress.errors import UnsupportedModel
from compress.models import config_of

HIDDEN_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""RMSNorm multiplies by its weight alone, twice a layer: the hidden width may be cut exactly."""


@dataclass(frozen=True, kw_only=True)
class LayerNames:
    """Names of one layer's linear modules; `queries` and so on are None where heads are fixed."""

    name: str
    ffn_in: tuple[str, ...]
    ffn_out: str
    queries: str | None = None
    keys: str | None = None
    values: str | None = None
    attention_out: str | None = None


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The prunable widths of a model and the modules that have them."""

    layers: tuple[LayerNames, ...]
    layer_list: str
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    hidden_family: bool
    depth_by_mask: bool
    model_type: str

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads


def structure_of(model: nn.Module) -> Structure:
    """The structure of a Llama-like decoder or a BERT-like encoder.

    Raises:
        UnsupportedModel: its layers are named otherwise (fused q/k/v, experts, ...).

    Example:
        `structure_of(LlamaForCausalLM(config)).kv_heads`
    """
    prefix = getattr(model, "base_model_prefix", "")
    backbone = getattr(model, prefix, model) if prefix else model
    modules = set(dict(backbone.named_modules()))
    if "layers.0.mlp.down_proj" in modules and "layers.0.self_attn.q_proj" in modules:
        return _decoder(model, prefix, modules)
    if "encoder.layer.0.intermediate.dense" in modules:
        return _encoder(model, prefix, modules)
    raise UnsupportedModel(
        f"{type(model).__name__}: no layers named like Llama's (self_attn.q_proj, mlp.down_proj) or "  # noqa: E501
        "BERT's (intermediate.dense); structured pruning knows these two families"
    )


def _decoder(model: nn.Module, prefix: str, modules: set[str]) -> Structure:
    config: Any = config_of(model)

    def layer(index: int) -> LayerNames:
        own = f"{prefix}.layers.{index}"
        gated = f"layers.{index}.mlp.gate_proj" in modules
        return LayerNames(
            name=own,
            ffn_in=tuple(f"{own}.mlp.{n}" for n in (["gate_proj"] if gated else []) + ["up_proj"]),
            ffn_out=f"{own}.mlp.down_proj",
            queries=f"{own}.self_attn.q_proj",
            keys=f"{own}.self_attn.k_proj",
            values=f"{own}.self_attn.v_proj",
            attention_out=f"{own}.self_attn.o_proj",
        )

    heads = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Structure(
        layers=tuple(layer(i) for i in range(config.num_hidden_layers)),
        layer_list=f"{prefix}.layers",
        ffn=int(config.intermediate_size),
        heads=heads,
        kv_heads=int(config.num_key_value_heads or heads),
        head_dim=int(head_dim),
        hidden=int(config.hidden_size),
        hidden_family=config.model_type in HIDDEN_FAMILIES,
        depth_by_mask=True,
        model_type=config.model_type,
    )


def _encoder(model: nn.Module, prefix: str, modules: set[str]) -> Structure:
    config: Any = config_of(model)

    def layer(index: int) -> LayerNames:
        own = f"{prefix}.encoder.layer.{index}"
        return LayerNames(
            name=own, ffn_in=(f"{own}.intermediate.dense",), ffn_out=f"{own}.output.dense"
        )

    heads = int(config.num_attention_heads)
    return Structure(
        layers=tuple(layer(i) for i in range(config.num_hidden_layers)),
        layer_list=f"{prefix}.encoder.layer",
        ffn=int(config.intermediate_size),
        heads=heads,
        kv_heads=heads,
        head_dim=int(config.hidden_size) // heads,
        hidden=int(config.hidden_size),
        hidden_family=False,
        depth_by_mask=False,
        model_type=config.model_type,
    )
