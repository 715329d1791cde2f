"""What the parts say to each other: traces, teacher signals, loss terms, steps.

Only plain data and protocols belong here; whoever produces or consumes them lives elsewhere.
Weight transforms are in `compress.transforms`, schemes in `compress.quantize.schemes`.

Legend: B sequences, L positions, N positions that count (their next token is a label),
C rows of one chunk of N, V vocabulary, H hidden width.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
"""`input_ids` (B, L) int64, `labels` (B, L) int64 with -100 where nothing is learned, not shifted;
`attention_mask` (B, L) where there is padding. Classification: `labels` (B,)."""

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Head:
    """The output projection as it is used in this step (masked and fake-quantised already)."""

    weight_VH: Tensor
    bias_V: Tensor | None = None

    def __call__(self, hidden_CH: Tensor) -> Tensor:
        """Logits (C, V) of some rows, in the dtype of the rows."""
        bias = None if self.bias_V is None else self.bias_V.to(hidden_CH.dtype)
        return nn.functional.linear(hidden_CH, self.weight_VH.to(hidden_CH.dtype), bias)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one forward pass left behind: the head's input, the head, and the tapped features.

    `hidden_BLH` is what the head multiplies (after its input quantiser, if it has one);
    classification models have one row a sequence: (B, 1, H).
    """

    hidden_BLH: Tensor
    head: Head
    features: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Want:
    """What a callback asks of the teacher."""

    logits: bool = False
    features: tuple[str, ...] = ()

    def __or__(self, other: "Want") -> "Want":
        """The union: what both ask for."""
        names = tuple(dict.fromkeys(self.features + other.features))
        return Want(logits=self.logits or other.logits, features=names)


class Signal(Protocol):
    """A teacher's answer for one batch; logits are made per chunk of rows, never all at once."""

    features: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class DenseSignal:
    """The teacher's last hidden states and head: logits over the whole vocabulary on demand.

    `sequences_S` names the batch rows that `hidden_SLH` covers; None means all of them, in order.
    """

    hidden_SLH: Tensor | None
    head: Head | None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    sequences_S: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TopKSignal:
    """The K likeliest (or K sampled) tokens of each position and their log-probabilities.

    `sampled` says how the K were chosen: False, the largest; True, drawn with replacement from the
    teacher (random-sampling KD), then `log_probs_BLK` are log(count / draws).
    """

    tokens_BLK: Tensor
    log_probs_BLK: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    sampled: bool = False


class Teacher(Protocol):
    """One interface for local, sharded, cached and served teachers.

    Never registered on a LightningModule: not in its checkpoint, its optimizer or DDP's buckets.
    """

    vocab_size: int

    def signal(self, batch: Batch, want: Want) -> DenseSignal | TopKSignal:
        """Run (or look up) the teacher on `batch`; no gradient flows into it."""
        ...


class LogitTerm(Protocol):
    """A loss on logits, evaluated chunk by chunk by `compress.distill.chunked.head_losses`."""

    @property
    def weight(self) -> float:
        """Factor of the term in the sum."""
        ...

    def __call__(self, chunk: "LogitChunk") -> tuple[Tensor, Tensor]:
        """The summed loss (a scalar) over the chunk's rows and its gradient (C, V) by the logits."""  # noqa: E501
        ...


class LogitChunk:
    """Some rows of student logits; log-probabilities are computed once per temperature.

    Terms share these tensors: a term may not write into them.
    """

    def __init__(self, *, logits_CV: Tensor, labels_C: Tensor, rows_C: Tensor) -> None:
        """`logits_CV` is fp32; `rows_C` are indices into the flattened (B * L) positions."""
        self.logits_CV, self.labels_C, self.rows_C = logits_CV, labels_C, rows_C
        self._log_probs: dict[tuple[float, int], Tensor] = {}

    def log_probs(self, temperature: float = 1.0, *, size: int | None = None) -> Tensor:
        """Log softmax(logits / temperature), (C, V); `size` keeps that many first tokens only.

        What `size` cuts off takes no share: the rest is normalised anew.
        """
        width = self.logits_CV.shape[1] if size is None else size
        key = (temperature, width)
        if key not in self._log_probs:
            logits = self.logits_CV[:, :width]
            scaled = logits if temperature == 1.0 else logits / temperature
            self._log_probs[key] = torch.log_softmax(scaled, dim=-1)
        return self._log_probs[key]

    def forget_logits(self) -> None:
        """Keep the log-probabilities alone: logits up to a constant a row, in half the memory."""
        self.logits_CV = self.log_probs()


class Step:
    """One training step as the callbacks see it.

    The teacher is asked at the first use of `signal`, once, for all that was wanted: a step in
    which no callback looks costs no teacher pass (routing relies on it).
    """

    def __init__(
        self,
        *,
        batch: Batch,
        student: Trace,
        teacher: Teacher | None,
        want: Want,
        number: int,
        count: Tensor | float | None = None,
    ) -> None:
        """`number` is the optimizer step; `count` the divisor of summed losses (default: N)."""
        self.batch, self.student, self.teacher, self.want = batch, student, teacher, want
        self.number = number
        self._count = count

    @cached_property
    def signal(self) -> DenseSignal | TopKSignal:
        """The teacher's answer to the whole batch."""
        if self.teacher is None:
            raise ValueError("a loss asks for a teacher, but this run has none: set teacher=...")
        return self.teacher.signal(self.batch, self.want)

    @cached_property
    def rows_N(self) -> Tensor:
        """Flat (B * L) indices of the positions whose next token is a label."""
        return (self._next_labels_BL.flatten() != IGNORED).nonzero().squeeze(-1)

    @cached_property
    def labels_N(self) -> Tensor:
        """The next token at each of `rows_N`."""
        return self._next_labels_BL.flatten()[self.rows_N]

    @property
    def count(self) -> Tensor | float:
        """What summed losses are divided by: with several ranks the mean count over ranks."""
        return max(self.rows_N.numel(), 1) if self._count is None else self._count

    @cached_property
    def _next_labels_BL(self) -> Tensor:
        labels = self.batch["labels"]
        if labels.dim() == 1:  # classification: one label a sequence, nothing to shift
            return labels[:, None]
        return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


@runtime_checkable
class LossSource(Protocol):
    """A callback that adds loss terms."""

    def want(self) -> Want:
        """What it needs of the teacher."""
        ...

    def losses(self, step: Step) -> Iterable[tuple[str, "Tensor | LogitTerm"]]:
        """Named terms, already multiplied by their weight where they are tensors."""
        ...


def union_of_wants(sources: Sequence[LossSource]) -> Want:
    """All that these callbacks ask of the teacher."""
    want = Want()
    for source in sources:
        want = want | source.want()
    return want
