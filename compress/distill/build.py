"""From settings and a teacher's signal to the one logit term that fits both.

Legend: B sequences, L positions.
"""

from dataclasses import dataclass
from typing import Literal

from compress.contract import DenseSignal, LogitTerm, Step, TopKSignal
from compress.distill.divergences import divergence_by_name
from compress.distill.sparse_terms import (
    SampledTerm,
    Tail,
    TopKTerm,
    largest_targets,
    stored_targets,
)
from compress.distill.teacher_rows import TeacherRows, common_vocabulary
from compress.distill.terms import DenseTerm
from compress.distill.uld import SortedTerm
from compress.errors import BadInput
from compress.schedule import linear


@dataclass(frozen=True, kw_only=True)
class LogitSettings:
    """What a logit distillation is told; checked when it is made.

    Args:
        teacher_weight: factor of the term; 0.0 asks nothing of the teacher's logits.
        divergence: `forward_kl`, `reverse_kl`, `jensen_shannon`, `skewed_kl`,
            `skewed_reverse_kl` or `total_variation`.
        temperature: at step 0; 1.0 compares the distributions themselves, towards infinity the
            centred logits (Hinton et al. 2015, section 2.1).
        final_temperature: reached in a straight line; None: constant.
        temperature_steps: optimizer steps of that line.
        scale_by_temperature_squared: True multiplies by T^2, so that the gradient's size does not
            depend on T; False leaves it shrink like 1 / T^2.
        beta: of `jensen_shannon`, in (0, 1).
        skew: of the skewed divergences, in [0, 1).
        top_k: compare the teacher's K likeliest tokens alone; 0 compares the whole vocabulary,
            or all that a stored or served teacher gives.
        tail: what becomes of the others when only K tokens are compared or stored.
        vocab_size: the tokenizer's size, where heads are padded beyond it; None: the smaller head.
        alignment: `same` (one tokenizer) or `uld` (two; sorted probabilities are compared).

    Raises:
        BadInput: a setting is unknown or out of range, or two contradict each other.
    """

    teacher_weight: float = 0.5
    divergence: str = "forward_kl"
    temperature: float = 1.0
    final_temperature: float | None = None
    temperature_steps: int = 0
    scale_by_temperature_squared: bool = True
    beta: float = 0.5
    skew: float = 0.1
    top_k: int = 0
    tail: Tail = "bucket"
    vocab_size: int | None = None
    alignment: Literal["same", "uld"] = "same"

    def __post_init__(self) -> None:
        """Refuse what no step could use."""
        divergence_by_name(self.divergence, beta=self.beta, skew=self.skew)
        last = self.temperature if self.final_temperature is None else self.final_temperature
        if min(self.temperature, last) <= 0:
            raise BadInput(f"temperatures must be above 0: {self.temperature}, {last}")
        if (self.final_temperature is not None) != (self.temperature_steps > 0):
            raise BadInput("final_temperature and temperature_steps go together: set both or none")
        if self.tail not in ("bucket", "renormalize"):
            raise BadInput(f"tail={self.tail!r} is unknown; use bucket or renormalize")
        if self.alignment not in ("same", "uld"):
            raise BadInput(f"alignment={self.alignment!r} is unknown; use same or uld")
        if self.teacher_weight < 0 or self.top_k < 0:
            raise BadInput("teacher_weight and top_k are 0 (off) or above")
        if self.alignment == "uld" and (self.top_k or self.divergence != "forward_kl"):
            raise BadInput("alignment=uld has a distance of its own: leave divergence and top_k")

    def temperature_at(self, step: int) -> float:
        """The temperature of an optimizer step."""
        if self.final_temperature is None:
            return self.temperature
        return linear(
            step, start=0, stop=self.temperature_steps,
            first=self.temperature, last=self.final_temperature,
        )  # fmt: skip


def teacher_term(
    step: Step, settings: LogitSettings, *, signal: DenseSignal | TopKSignal | None = None
) -> LogitTerm:
    """The term that compares the student with a signal (default: the step's).

    Raises:
        BadInput: the signal cannot serve the settings (a temperature for stored tokens, more
            likeliest tokens than are stored, ...), now or at a later step.
    """
    signal = step.signal if signal is None else signal
    temperature = settings.temperature_at(step.number)
    if isinstance(signal, TopKSignal):
        size = _size_of_student(step, settings)
        return _sparse_term(signal, settings, temperature, size=size)
    return _dense_term(step, signal, settings, temperature)


def _scale(settings: LogitSettings, temperature: float) -> float:
    return temperature**2 if settings.scale_by_temperature_squared else 1.0


def _dense_term(
    step: Step, signal: DenseSignal, settings: LogitSettings, temperature: float
) -> LogitTerm:
    sequences, length = step.student.hidden_BLH.shape[:2]
    teacher = TeacherRows(signal, sequences=sequences, length=length)
    weight, scale = settings.teacher_weight, _scale(settings, temperature)
    if settings.alignment == "uld":
        return SortedTerm(teacher=teacher, weight=weight, temperature=temperature, scale=scale)
    divergence = divergence_by_name(settings.divergence, beta=settings.beta, skew=settings.skew)
    student_size = step.student.head.weight_VH.shape[0]
    size = common_vocabulary(student_size, teacher.vocab_size, vocab_size=settings.vocab_size)
    if not settings.top_k:
        return DenseTerm(
            teacher=teacher, divergence=divergence, weight=weight, temperature=temperature,
            scale=scale, size=size,
        )  # fmt: skip
    targets = largest_targets(teacher, k=settings.top_k, size=size, temperature=temperature)
    return TopKTerm(
        targets=targets, divergence=divergence, weight=weight, temperature=temperature,
        scale=scale, tail=settings.tail, size=size, covered=teacher.covered,
    )  # fmt: skip


def _size_of_student(step: Step, settings: LogitSettings) -> int:
    """Tokens that count where the teacher's stored ones do not tell how many it knows."""
    rows = step.student.head.weight_VH.shape[0]
    return common_vocabulary(rows, rows, vocab_size=settings.vocab_size)


def _sparse_term(
    signal: TopKSignal, settings: LogitSettings, temperature: float, *, size: int
) -> LogitTerm:
    _check_stored(signal, settings)
    weight = settings.teacher_weight
    if signal.sampled:
        return SampledTerm(targets=stored_targets(signal, size=size), weight=weight, size=size)
    return TopKTerm(
        targets=stored_targets(signal, size=size, top_k=settings.top_k, temperature=temperature),
        divergence=divergence_by_name(settings.divergence, beta=settings.beta, skew=settings.skew),
        weight=weight, temperature=temperature, scale=_scale(settings, temperature),
        tail=settings.tail, size=size,
    )  # fmt: skip


def _check_stored(signal: TopKSignal, settings: LogitSettings) -> None:
    """Refuse, at the first batch, what K stored tokens cannot tell at this or a later step."""
    stored = signal.tokens_BLK.shape[-1]
    heat = settings.final_temperature or settings.temperature
    temperatures = sorted({settings.temperature, heat})
    if settings.alignment == "uld":
        raise BadInput("alignment=uld needs the teacher's whole distribution, not stored tokens")
    if signal.sampled:
        _check_sampled(settings, temperatures)
    elif settings.top_k > stored:
        raise BadInput(
            f"top_k={settings.top_k}: the teacher gives {stored} tokens a position; use top_k="
            f"{stored} or fewer, 0 for all of them, or store or ask for more (teacher's top_k)"
        )
    elif temperatures != [1.0] and settings.tail == "bucket":
        raise BadInput(
            f"temperature={settings.temperature}, final_temperature={settings.final_temperature} "
            "with stored tokens: the tail's mass at another temperature than 1 is unknown; use "
            "temperature=1 or tail=renormalize"
        )


def _check_sampled(settings: LogitSettings, temperatures: list[float]) -> None:
    if settings.divergence != "forward_kl" or temperatures != [1.0]:
        raise BadInput(
            "sampled tokens estimate the forward KL at temperature 1 and nothing else: "
            f"divergence={settings.divergence}, temperature={settings.temperature}, "
            f"final_temperature={settings.final_temperature}"
        )
    if settings.top_k or settings.tail != "bucket":
        raise BadInput(
            "sampled tokens stand for the whole vocabulary, none of them is among the likeliest "
            f"and none is left over: top_k={settings.top_k}, tail={settings.tail}; leave both "
            "(top_k=0, tail=bucket), or store the likeliest tokens instead of draws"
        )
