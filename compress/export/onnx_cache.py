"""A decoder with its key-value cache as inputs and outputs, so that runtimes write token by token.

`past_key_values.N.key` and `.value` go in, `present.N.key` and `.value` come out: the names that
onnxruntime's and Optimum's generation loops know. A first pass has a past of length 0.

Legend: B sequences, L tokens of this pass, P tokens before it, T = P + L.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModel
from compress.quantize.calibration import evaluating


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """(heads, width of keys, width of values) of each layer."""

    layers: tuple[tuple[int, int, int], ...]

    @property
    def inputs(self) -> list[str]:
        """Names of the past, in order."""
        return [f"past_key_values.{n}.{x}" for n in range(len(self.layers)) for x in PAIR]

    @property
    def outputs(self) -> list[str]:
        """Names of the present, in order."""
        return [f"present.{n}.{x}" for n in range(len(self.layers)) for x in PAIR]

    def empty(self, batch: int, length: int = 0) -> list[Tensor]:
        """A past of zeros."""
        return [
            torch.zeros(batch, heads, length, width)
            for heads, *widths in self.layers for width in widths
        ]  # fmt: skip


PAIR = ("key", "value")


def cache_shape(student: nn.Module) -> CacheShape:
    """The cache that the model keeps, found by a pass over two tokens.

    Raises:
        UnsupportedModel: it keeps none, or one that forgets (a sliding window, a state).
    """
    from transformers.cache_utils import DynamicLayer

    device = next(student.parameters()).device
    tokens = torch.ones(1, 2, dtype=torch.int64, device=device)
    with torch.no_grad(), evaluating(student):
        cache = getattr(student(input_ids=tokens, use_cache=True), "past_key_values", None)
    layers = list(getattr(cache, "layers", []))
    if not layers:
        raise UnsupportedModel(
            f"cache=true: {type(student).__name__} keeps no key-value cache; leave it out"
        )
    others = [f"layer {n}: {type(x).__name__}" for n, x in enumerate(layers)
              if type(x) is not DynamicLayer]  # fmt: skip
    if others:
        raise UnsupportedModel(
            "cache=true is for attention over all tokens; these layers keep something else:\n  "
            + "\n  ".join(others) + "\nLeave cache=true out, or use target=vllm."
        )  # fmt: skip
    return CacheShape(
        layers=tuple((x.keys.shape[1], x.keys.shape[-1], x.values.shape[-1]) for x in layers)
    )


class CachedLogits(nn.Module):
    """The model as a function of tokens, the mask of past and present, and the past."""

    def __init__(self, model: nn.Module) -> None:
        """`model` is a causal language model of transformers."""
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Logits (B, L, V), then the keys and values of all T tokens."""
        from transformers.cache_utils import Cache

        cache = Cache(layers=[_given(*past[n : n + 2]) for n in range(0, len(past), 2)])
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache,
            position_ids=positions(attention_mask, input_ids.shape[1]), use_cache=True,
        )  # fmt: skip
        held = [value for layer in cache.layers for value in (layer.keys, layer.values)]
        return (out.logits, *held)


def positions(mask_BT: Tensor, length: int) -> Tensor:
    """Positions of the last `length` tokens, padding on the left not counted (B, L)."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -length:]


def _given(keys: Tensor, values: Tensor) -> Any:
    """A layer's cache that holds this past, whatever its length."""
    from transformers.cache_utils import DynamicLayer

    class Given(DynamicLayer):  # type: ignore[misc]
        def get_seq_length(self) -> Any:
            # the original asks whether it is empty, which the exporter would answer for good
            return self.keys.shape[-2]

    layer = Given()
    layer.keys, layer.values = keys, values
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    return layer
