"""Models made of fake tensors: shapes, dtypes and sizes without bytes, so that any size can run."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from compress.errors import UnsupportedModel

ATTENTION = "compress_counted"

OWN_ATTENTION = {"falcon": "sdpa", "gpt_neo": "eager", "gptj": "eager", "mpt": "eager"}
"""model_type -> what it runs by: it writes its attention itself, and takes no other."""

UNCOUNTED = (RuntimeError, AttributeError, TypeError, ValueError, LookupError)
"""What a model's code raises where it asks for values, or for what only real tensors have."""


@dataclass(frozen=True, kw_only=True)
class FakeModel:
    """A model, and the mode in which its tensors may be used.

    `routed` says that it has experts: their kernels run in bfloat16 alone.
    """

    module: nn.Module
    mode: FakeTensorMode
    routed: bool

    def run(self, *, batch: int, length: int, autocast: bool = False) -> Any:
        """One forward pass of the backbone (the head is computed in chunks)."""
        module = self.module
        backbone = getattr(module, getattr(module, "base_model_prefix", ""), module)
        config: Any = module.config
        extra = {"use_cache": False} if hasattr(config, "use_cache") else {}
        cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast)
        with _quiet(), self.mode, cast:
            tokens = torch.zeros(batch, length, dtype=torch.long)
            # a given mask: without one transformers looks into the (absent) values of positions
            inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **extra}
            try:
                return backbone(**inputs)
            except UNCOUNTED as error:
                raise UnsupportedModel(
                    f"{type(module).__name__} (model_type {config.model_type}): its code does not "
                    f"run on sizes alone, {batch} sequences of {length} tokens; measure it with "
                    "its weights instead: scripts/benchmark.py"
                ) from error


class _FusedAttention(torch.autograd.Function):
    """Saves what FlashAttention (Dao et al. 2022) saves: q, k, v, the output and its log-sums."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output's shape; nothing is computed."""
        batch, heads, length, _ = q.shape
        # laid as fused kernels lay it, so that the transpose after it needs no copy
        out = q.new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Shapes of the three gradients."""
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def _counted(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    if torch.is_autocast_enabled("cpu"):  # as it does for attention kernels
        q, k, v = (t.to(torch.bfloat16) for t in (q, k, v))
    return _FusedAttention.apply(q, k, v).transpose(1, 2), None  # type: ignore[no-untyped-call]


def fake_model(config: Any, *, dtype: torch.dtype = torch.bfloat16) -> FakeModel:
    """The model of a configuration, unquantised.

    Args:
        config: of transformers; its `architectures` name the class, a causal model otherwise.
        dtype: of its parameters.

    Raises:
        UnsupportedModel: transformers cannot build it.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.initialization import no_init_weights

    AttentionInterface.register(ATTENTION, _counted)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, _quiet(), no_init_weights():  # there are no values to draw
            make, attention = _maker(plain), OWN_ATTENTION.get(plain.model_type, ATTENTION)
            module: nn.Module = make(plain, attn_implementation=attention, dtype=dtype)
            module.tie_weights()  # type: ignore[operator]  # which was left out with the values
    except (*UNCOUNTED, ImportError) as error:
        kind = getattr(config, "model_type", "?")
        raise UnsupportedModel(
            f"{kind}: cannot be built from its configuration: {first_line(error)}"
        ) from error
    routed = any(p.dim() == 3 and ".experts" in n for n, p in module.named_parameters())
    if routed:  # the only kind whose sizes do not depend on where tokens are sent
        with suppress(ValueError):  # Llama 4 has one kind alone, and it sends all to all
            module.set_experts_implementation("grouped_mm")  # type: ignore[operator]
    return FakeModel(module=module, mode=mode, routed=routed)


def first_line(error: BaseException) -> str:
    """The kind of an error and what it says first."""
    said = str(error).strip() or "no reason given"
    return f"{type(error).__name__}: {said.splitlines()[0]}"


def _maker(config: Any) -> Any:
    import transformers

    names = getattr(config, "architectures", None) or [""]
    kind = getattr(transformers, names[0], None)
    if kind is not None:
        return kind._from_config
    causal: Any = transformers.AutoModelForCausalLM
    masked: Any = transformers.AutoModelForMaskedLM
    # encoders have a causal class too, for those that were made decoders
    encodes = type(config) in masked._model_mapping and not getattr(config, "is_decoder", False)
    # the text part of some that also see has no class with a head of its own
    known = type(config) in causal._model_mapping and not encodes
    return (causal if known else transformers.AutoModel).from_config


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' advice on settings, and torch's stack traces of what is caught."""
    from transformers.utils import logging as advice

    level, traces = advice.get_verbosity(), logging.getLogger(FakeTensorMode.__module__)
    shown = traces.disabled
    advice.set_verbosity_error()
    traces.disabled = True
    try:
        yield
    finally:
        advice.set_verbosity(level)
        traces.disabled = shown
