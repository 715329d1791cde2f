"""How good a causal language model is: loss a token, and agreement with a baseline.

Works for any Hugging Face causal LM: dense, fake-quantised, or reloaded from an export.

Legend: B sequences, L positions, C rows of a chunk, V vocabulary, H hidden.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from compress.contract import IGNORED, Batch, Trace
from compress.errors import BadInput
from compress.models import trace_causal_lm

CHUNK_ELEMENTS = 1 << 22
"""Logits held at once: 16 MB in fp32."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Next-token loss over held-out tokens.

    Args:
        loss: mean, in nats a token.
        tokens: how many were predicted.
        sequence_losses: summed nats of each sequence, for paired bootstrap intervals.
        sequence_tokens: predicted tokens of each sequence.
    """

    loss: float
    tokens: int
    sequence_losses: tuple[float, ...] = field(repr=False)
    sequence_tokens: tuple[int, ...] = field(repr=False)

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model against a baseline on the same tokens.

    Args:
        model: loss of the model; `baseline` that of the baseline.
        agreement: share of positions at which both find the same token likeliest.
        kl: mean KL(baseline || model) in nats a token; 0.0 for equal models.
        sequence_agreements: agreeing positions of each sequence.
        sequence_kls: summed KL of each sequence.
    """

    model: Quality
    baseline: Quality
    agreement: float
    kl: float
    sequence_agreements: tuple[float, ...] = field(repr=False)
    sequence_kls: tuple[float, ...] = field(repr=False)

    @property
    def kept(self) -> float:
        """Share of quality kept: exp(baseline loss - loss), the inverse ratio of perplexities."""
        return math.exp(min(self.baseline.loss - self.model.loss, 700.0))


def token_loss(
    model: nn.Module, batches: Iterable[Batch], *, max_batches: int | None = None
) -> Quality:
    """Mean cross-entropy of the next token, summed in fp64.

    Args:
        model: any Hugging Face causal LM; its training mode is left as it was.
        batches: `input_ids`, `labels` (-100 is not counted) and, with padding, `attention_mask`.
        max_batches: stop after so many; None takes all.

    Raises:
        BadInput: not one token is predicted, or a loss is not finite.
    """

    def losses(batch: Batch) -> dict[str, Tensor]:
        return _chunked(batch, [_trace(model, batch)], _label_losses)

    sums = _summed([model], islice(batches, max_batches), losses)
    return _quality(sums, "loss")


def compare(
    model: nn.Module,
    baseline: nn.Module,
    batches: Iterable[Batch],
    *,
    max_batches: int | None = None,
) -> Comparison:
    """Both models on the same tokens: losses, top-1 agreement, KL(baseline || model).

    Args:
        model: what is judged; stays as it was, as does the baseline.
        baseline: what it is held against; it sees the same vocabulary.
        batches: as for `token_loss`.
        max_batches: stop after so many; None takes all.

    Raises:
        BadInput: the vocabularies differ, or as `token_loss`.
    """

    def measures(batch: Batch) -> dict[str, Tensor]:
        traces = [_trace(m, batch) for m in (model, baseline)]
        sizes = [t.head.weight_VH.shape[0] for t in traces]
        if sizes[0] != sizes[1]:
            raise BadInput(
                f"model and baseline have other vocabularies: {sizes[0]} and {sizes[1]} tokens"
            )
        return _chunked(batch, traces, _pair_measures)

    sums = _summed([model, baseline], islice(batches, max_batches), measures)
    count = sum(sums["tokens"])
    return Comparison(
        model=_quality(sums, "loss"),
        baseline=_quality(sums, "baseline_loss"),
        agreement=math.fsum(sums["agreement"]) / count,
        kl=math.fsum(sums["kl"]) / count,
        sequence_agreements=tuple(sums["agreement"]),
        sequence_kls=tuple(sums["kl"]),
    )


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode and no autograd inside; every module's own mode comes back afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where a model's inputs go: the CPU for one that runs in another runtime."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _trace(model: nn.Module, batch: Batch) -> Trace:
    """What the head multiplies, and the head; a model of another runtime has logits alone."""
    own: Callable[[Batch], Trace] | None = getattr(model, "trace_batch", None)
    return own(batch) if own is not None else trace_causal_lm(model, batch)


Measure = Callable[[list[Tensor], Tensor], dict[str, Tensor]]


def _label_losses(logits: list[Tensor], labels_C: Tensor) -> dict[str, Tensor]:
    picked_C = logits[0].gather(1, labels_C[:, None]).squeeze(1)
    return {"loss": logits[0].logsumexp(-1) - picked_C}


def _pair_measures(logits: list[Tensor], labels_C: Tensor) -> dict[str, Tensor]:
    ours_CV, theirs_CV = (part.log_softmax(-1) for part in logits)
    return {
        "loss": -ours_CV.gather(1, labels_C[:, None]).squeeze(1),
        "baseline_loss": -theirs_CV.gather(1, labels_C[:, None]).squeeze(1),
        "agreement": (ours_CV.argmax(-1) == theirs_CV.argmax(-1)).float(),
        "kl": (theirs_CV.exp() * (theirs_CV - ours_CV)).sum(-1),
    }


def _chunked(batch: Batch, traces: list[Trace], measure: Measure) -> dict[str, Tensor]:
    """Each measure summed over the positions of each sequence, (B,) in fp64, and their count."""
    next_BL = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    counted_BL = next_BL != IGNORED
    rows_N = counted_BL.flatten().nonzero().squeeze(-1)
    labels_N, owner_N = next_BL.flatten()[rows_N], rows_N // next_BL.shape[1]
    hidden = [trace.hidden_BLH.flatten(0, 1) for trace in traces]
    tokens_B = counted_BL.sum(1)
    sums: dict[str, Tensor] = {"tokens": tokens_B}
    step = max(1, CHUNK_ELEMENTS // traces[0].head.weight_VH.shape[0])
    for start in range(0, rows_N.numel(), step):
        part = slice(start, start + step)
        logits = [t.head(h[rows_N[part]]).float() for t, h in zip(traces, hidden, strict=True)]
        for name, values_C in measure(logits, labels_N[part]).items():
            zeros_B = torch.zeros_like(tokens_B, dtype=torch.float64)
            sums.setdefault(name, zeros_B).index_add_(0, owner_N[part], values_C.double())
    return sums


def _summed(
    models: list[nn.Module],
    batches: Iterable[Batch],
    measure: Callable[[Batch], dict[str, Tensor]],
) -> Mapping[str, list[float]]:
    """Every sequence's sums, one list a measure; a model on another device gets its own copy."""
    device = device_of(models[0])
    found: dict[str, list[float]] = {}
    with evaluating(*models):
        for batch in batches:
            moved = {key: value.to(device) for key, value in batch.items()}
            for name, values_B in measure(moved).items():
                found.setdefault(name, []).extend(values_B.tolist())
    if not sum(found.get("tokens", [])):
        raise BadInput("there is no token to predict: the data is empty or fully masked")
    return found


def _quality(sums: Mapping[str, list[float]], name: str) -> Quality:
    total, tokens = math.fsum(sums[name]), int(sum(sums["tokens"]))
    if not math.isfinite(total):
        raise BadInput(f"the {name} is {total}: the model's weights or activations are not finite")
    return Quality(
        loss=total / tokens, tokens=tokens, sequence_losses=tuple(sums[name]),
        sequence_tokens=tuple(int(n) for n in sums["tokens"]),
    )  # fmt: skip
