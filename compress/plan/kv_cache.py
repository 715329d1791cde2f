"""The KV-cache that a configuration asks for: bytes a token, layer by layer."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

FULL = ("full_attention", "attention")
WINDOWED = ("sliding_attention", "chunked_attention")


@dataclass(frozen=True, kw_only=True)
class CacheLayout:
    """What one token leaves in the cache.

    Args:
        bytes_16: in 16 bits, over the layers that keep every token.
        windows: (window, bytes a token) of those that keep only that many.
        heads: of keys, where they are fewest.
        parts: devices that can share it; more hold copies. A latent (MLA) cannot be shared.
    """

    bytes_16: int
    windows: tuple[tuple[int, int], ...]
    heads: int
    parts: int


def cache_layout(text: Any) -> CacheLayout:
    """The layout of a text configuration of transformers.

    Layers that use the keys of an earlier one (Gemma 3n) keep none, nor do those of linear
    attention. A window without `layer_types` is that of every layer, as in Mistral 7B.
    """
    kinds, latent = _kinds(text), first(text, "kv_lora_rank")
    window = first(text, "sliding_window", "attention_chunk_size")
    full, windowed, heads = 0, Counter[int](), []
    for number, kind in enumerate(kinds):
        count, width = _keys(text, number)
        if latent:  # one latent and one rotary key
            size = 2 * (latent + int(getattr(text, "qk_rope_head_dim", 0) or 0))
        else:
            size = 2 * 2 * count * width
        heads.append(count)
        if kind in WINDOWED and window:
            windowed[window] += size
        elif kind in (*FULL, *WINDOWED):
            full += size
    fewest = min(heads)
    return CacheLayout(
        bytes_16=full, windows=tuple(windowed.items()), heads=fewest, parts=1 if latent else fewest
    )


def _kinds(text: Any) -> list[str]:
    """Each layer's kind, without the layers that use the keys of another."""
    layers = int(text.num_hidden_layers)
    given = getattr(text, "layer_types", None)
    if not given:
        windowed = first(text, "sliding_window") and getattr(text, "use_sliding_window", True)
        given = [WINDOWED[0] if windowed else FULL[0]] * layers
    return list(given)[: layers - (first(text, "num_kv_shared_layers") or 0)]


def _keys(text: Any, layer: int) -> tuple[int, int]:
    """Key heads of one layer, and the width of each."""
    own = getattr(text, "per_layer_config", None)  # layers that differ among themselves
    of_layer = own[layer] if own else text
    heads = int(text.num_attention_heads)
    width = first(of_layer, "head_dim") or first(text, "head_dim") or text.hidden_size // heads
    named = first(of_layer, "num_key_value_heads") or _falcon_heads(text)
    return named or heads, int(width)


def _falcon_heads(text: Any) -> int | None:
    """Falcon's: its 7B shares one key among all heads, whatever `num_kv_heads` says."""
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", True):
        return 1
    return first(text, "num_kv_heads")


def first(config: Any, *names: str) -> int | None:
    """The first of these settings that is there and not zero."""
    found = (getattr(config, name, None) for name in names)
    return next((int(value) for value in found if isinstance(value, int) and value), None)
