"""What a model holds, from its configuration alone: it is built of fake tensors, without bytes.

Counting the built modules, rather than a formula, is right for GQA, MoE, tied embeddings and
whatever else transformers can build.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from compress.errors import BadInput, UnsupportedModel
from compress.plan.activations import transient_bytes
from compress.plan.fakes import fake_model
from compress.plan.kv_cache import cache_layout, first

WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
"""Where configurations keep the inner widths of their feed-forward layers."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Weights that share a shape and a job.

    Args:
        shape: (O, I) of one matrix.
        count: how many there are: layers, times experts.
        active: how many a token passes through; `count` but for experts.
        quantizable: whether a scheme covers it: `nn.Linear`, but not the output head.
        in_block: False for tables and the head, which one stage of a pipeline holds.
        head: the output head, or the table that is tied to it.
    """

    shape: tuple[int, ...]
    count: int
    active: float
    quantizable: bool
    in_block: bool = True
    head: bool = False

    @property
    def size(self) -> int:
        """Weights of all of them."""
        return self.count * prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model as far as memory and speed go.

    Args:
        name: of its architecture.
        config: its text configuration.
        matrices: every weight; tied tensors stand once.
        kv_bytes_16: bytes of the KV-cache a token in 16 bits, over all layers without a window.
        windows: (window, bytes a token) of layers that keep only that many tokens.
        heads: query heads; `kv_heads` those of keys.
        cache_parts: devices that can share a token's cache: the KV heads; 1 for a latent (MLA).
        widths: of what enters the layers that tensor parallelism divides by their inputs.
        layers: blocks.
        hidden: width.
        vocab: tokens.
        positions: tokens of a sequence that it takes; 0 where the configuration sets no limit.
        generates: False for encoders: no cache.
        routed: it has experts: it is planned as a server and a teacher, not as a student.
        conv1d: layers of GPT-2's kind, whose weights lie as (I, O): no scheme covers them.
        counted: what was counted before.
    """

    name: str
    config: Any
    matrices: tuple[Matrix, ...]
    kv_bytes_16: int
    windows: tuple[tuple[int, int], ...]
    heads: int
    kv_heads: int
    cache_parts: int
    widths: tuple[int, ...]
    layers: int
    hidden: int
    vocab: int
    positions: int
    generates: bool
    routed: bool
    conv1d: int
    counted: dict[tuple[int, int], int] = field(default_factory=dict, repr=False, compare=False)

    def transient(self, *, batch: int, length: int) -> int:
        """`activations.transient_bytes` of this model, counted once for each size."""
        if (batch, length) not in self.counted:
            self.counted[batch, length] = transient_bytes(self.config, batch=batch, length=length)
        return self.counted[batch, length]

    @property
    def parameters(self) -> int:
        """All weights."""
        return sum(m.size for m in self.matrices)

    @property
    def compressible(self) -> bool:
        """Whether a scheme covers any layer."""
        return any(m.quantizable for m in self.matrices)

    @property
    def active_parameters(self) -> float:
        """Weights that one token is multiplied with (fewer with experts)."""
        return sum(m.active * prod(m.shape) for m in self.matrices)


def load_config(model: str | Path) -> Any:
    """The transformers configuration at a folder, a config.json, or by name on the hub.

    Raises:
        BadInput: there is none, or it is damaged.
    """
    from transformers import AutoConfig

    path = Path(model).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        exported = path / "export" / "vllm"
        if not (exported / "config.json").is_file():
            raise BadInput(f"model={model}: the folder has no config.json")
        path = exported
    try:
        return AutoConfig.from_pretrained(str(path) if path.exists() else str(model))
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"model={model}: transformers reads no configuration: {said}") from error


def shape_of(config: Any) -> ModelShape:
    """Everything that memory is counted from.

    Raises:
        UnsupportedModel: transformers cannot build it, or it is no decoder or encoder of attention.
    """
    built, text = fake_model(config), config.get_text_config()
    model = built.module
    name = type(model).__name__
    if getattr(config, "is_encoder_decoder", False) or not hasattr(text, "num_attention_heads"):
        raise UnsupportedModel(
            f"{name} (model_type {config.model_type}): decoders and encoders with attention are "
            "planned, not encoder-decoders or models without attention heads"
        )
    layout = cache_layout(text)
    # a model that also sees or hears generates too, whatever its class ends with
    generates = name.endswith(("ForCausalLM", "LMHeadModel")) or text is not config
    return ModelShape(
        name=name, config=text, matrices=tuple(_matrices(model, text)),
        kv_bytes_16=layout.bytes_16 if generates else 0,
        windows=layout.windows if generates else (),
        heads=int(text.num_attention_heads), kv_heads=layout.heads, cache_parts=layout.parts,
        widths=_widths(text),
        layers=int(text.num_hidden_layers), hidden=int(text.hidden_size),
        vocab=int(text.vocab_size),
        positions=max(first(text, "max_position_embeddings", "max_seq_len") or 0, 0),  # XLNet: -1
        generates=generates, routed=built.routed,
        conv1d=sum(_is_conv1d(module) for module in model.modules()),
    )  # fmt: skip


def _widths(text: Any) -> tuple[int, ...]:
    heads = int(text.num_attention_heads)
    head = first(text, "v_head_dim", "head_dim") or text.hidden_size // heads
    return (heads * int(head), *(width for key in WIDTHS if (width := first(text, key))))


def _matrices(model: nn.Module, text: Any) -> Iterator[Matrix]:
    experts = max(first(text, "num_local_experts", "num_experts", "n_routed_experts") or 1, 1)
    share = (first(text, "num_experts_per_tok", "moe_k") or experts) / experts
    ask: Any = getattr(model, "get_output_embeddings", None)
    head = ask() if ask is not None else None
    owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    for name, parameter in model.named_parameters():  # tied tensors are named once
        owner, shape = owners[id(parameter)], tuple(parameter.shape)
        numbered = any(part.isdigit() for part in name.split("."))
        routed = len(shape) == 3 and ".experts" in name
        if routed:  # one tensor holds the layer's experts
            yield Matrix(shape=shape[1:], count=shape[0], active=shape[0] * share, quantizable=True)
            continue
        embedding = isinstance(owner, nn.Embedding)
        heads = head is not None and any(p is parameter for p in head.parameters())
        linear = isinstance(owner, nn.Linear) and len(shape) == 2
        yield Matrix(
            # a look-up reads a row; but a tied table is multiplied with, as the head
            shape=shape[::-1] if _is_conv1d(owner) else shape, count=1,
            active=0.0 if embedding and not heads else 1.0,
            quantizable=linear and owner is not head, in_block=numbered, head=heads,
        )  # fmt: skip


def _is_conv1d(module: nn.Module) -> bool:
    """Of transformers, by name: importing it would load what `import compress.plan` need not."""
    return type(module).__name__ == "Conv1D"
