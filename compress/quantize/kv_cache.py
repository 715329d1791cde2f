"""Keys and values rounded as the runtime's FP8 cache rounds them, after the rotary embedding.

Attention modules of transformers hand both to `past_key_values.update`: a hook puts a quantiser
in its place, with or without a real cache behind it.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from compress.errors import UnsupportedModel
from compress.quantize.inputs import QuantizeInput
from compress.quantize.schemes import kv_cache_args
from compress.transforms import KV_QUANTIZER, attach_child


class QuantizeKeyValue(nn.Module):
    """Two static quantisers, one scale each, learned like any other."""

    def __init__(self, *, name: str, device: Any, **settings: Any) -> None:
        """`settings` are those of `QuantizeInput`."""
        super().__init__()
        # heads come before positions
        shared = {"args": kv_cache_args(), "device": device, "positions": 2, **settings}
        self.keys = QuantizeInput(name=f"{name}: keys", **shared)
        self.values = QuantizeInput(name=f"{name}: values", **shared)

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Both on their grids."""
        return self.keys(keys), self.values(values)

    def tensors(self) -> dict[str, Tensor]:
        """The scales under the names of the file, beside the attention module."""
        scales = {"k_scale": self.keys.scheme(), "v_scale": self.values.scheme()}
        return {key: record.tensors["scale"] for key, record in scales.items()}


class _QuantizingCache:
    """Stands where a cache is expected; what it does not know it leaves to the real one."""

    def __init__(self, quantizer: QuantizeKeyValue, cache: Any) -> None:
        self._quantizer, self._cache = quantizer, cache

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, values = self._quantizer(keys, values)
        if self._cache is None:
            return keys, values
        return self._cache.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def attach_kv_quantizers(model: nn.Module, **settings: Any) -> list[str]:
    """Quantise keys and values of every attention module of a decoder; returns their names.

    Raises:
        UnsupportedModel: the model has no attention that writes to a cache.
    """
    found = dict(attentions(model))
    if not found:
        raise UnsupportedModel(
            f"kv_cache=fp8: {type(model).__name__} has no attention with k_proj, v_proj and "
            "past_key_values; leave kv_cache null"
        )
    for name, attention in found.items():
        device = next(attention.parameters()).device
        attach_child(
            attention, KV_QUANTIZER, QuantizeKeyValue(name=name, device=device, **settings)
        )
        attention.register_forward_pre_hook(_quantize_cache, with_kwargs=True)
    return list(found)


def attentions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Attention modules by name: those that own k_proj and take `past_key_values`."""
    for name, module in model.named_modules():
        takes = inspect.signature(module.forward).parameters
        if hasattr(module, "k_proj") and hasattr(module, "v_proj") and "past_key_values" in takes:
            yield name, module


def _quantize_cache(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    quantizer = attention.get_submodule(KV_QUANTIZER)
    cache = _QuantizingCache(quantizer, kwargs.get("past_key_values"))  # type: ignore[arg-type]
    return args, {**kwargs, "past_key_values": cache}
