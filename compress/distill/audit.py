"""What audited rows tell: how far student and paths are from the whole teacher; fitting an exit.

Legend: A audited sequences, B sequences, L positions, N positions that count, V vocabulary.
"""

import torch
from torch import Tensor

from compress.contract import DenseSignal, Head, Step, Trace, Want
from compress.distill.build import LogitSettings, teacher_term
from compress.distill.chunked import CHUNK_ELEMENTS, head_losses
from compress.distill.divergences import forward_kl
from compress.distill.paths import ExitPath, rows_of
from compress.distill.teacher_rows import TeacherRows, common_vocabulary


def sub_step(step: Step, sequences_A: Tensor) -> Step:
    """The step of some sequences alone; nothing in it has a gradient."""
    rows = sequences_A.to(step.student.hidden_BLH.device)
    head = Head(
        weight_VH=step.student.head.weight_VH.detach(),
        bias_V=None if step.student.head.bias_V is None else step.student.head.bias_V.detach(),
    )
    hidden = step.student.hidden_BLH.detach().index_select(0, rows)
    return Step(
        batch=rows_of(step.batch, rows), student=Trace(hidden_BLH=hidden, head=head),
        teacher=None, want=Want(), number=step.number,
    )  # fmt: skip


@torch.no_grad()
def distance_to(reference: DenseSignal, other: DenseSignal, step: Step) -> Tensor:
    """KL(reference | other), mean over each sequence's positions that count, (A,), fp32.

    Args:
        reference: the whole teacher on the step's sequences.
        other: a path, or the student (`trace_signal`), on the same sequences.
        step: tells which positions count, see `sub_step`.
    """
    sequences, length = step.student.hidden_BLH.shape[:2]
    ours, theirs = (
        TeacherRows(signal, sequences=sequences, length=length) for signal in (other, reference)
    )
    size = common_vocabulary(ours.vocab_size, theirs.vocab_size)
    totals_A = torch.zeros(sequences, device=step.rows_N.device)
    rows_per_chunk = max(1, CHUNK_ELEMENTS // size)
    for rows_C in step.rows_N.split(rows_per_chunk):  # type: ignore[no-untyped-call]
        slope = forward_kl(ours.log_probs(rows_C, size=size), theirs.log_probs(rows_C, size=size))
        totals_A.index_add_(0, rows_C // length, slope.value_C.float())
    counts_A = torch.bincount(step.rows_N // length, minlength=sequences)
    return totals_A / counts_A.clamp(min=1)


def trace_signal(trace: Trace) -> DenseSignal:
    """The student, as if it were a teacher: to be compared with one."""
    return DenseSignal(hidden_SLH=trace.hidden_BLH, head=trace.head)


class LensFit:
    """Fits the lens of an exit to the whole teacher, one Adam step an audit.

    Args:
        exit_path: whose lens is fitted.
        learning_rate: of Adam; 0.0 leaves the lens the identity.
    """

    def __init__(self, exit_path: ExitPath, *, learning_rate: float) -> None:
        self.exit_path, self.learning_rate = exit_path, learning_rate
        self._adam: torch.optim.Adam | None = None

    @torch.enable_grad()
    def step(self, raw: DenseSignal, reference: DenseSignal, step: Step) -> None:
        """Move the lens towards the reference on these rows; ranks share their gradients."""
        fitted = self.exit_path.through_lens(raw)
        assert fitted.hidden_SLH is not None and fitted.head is not None
        trace = Trace(hidden_BLH=fitted.hidden_SLH, head=fitted.head)
        fit = Step(
            batch=step.batch, student=trace, teacher=None, want=Want(), number=step.number
        )  # fmt: skip
        term = teacher_term(fit, LogitSettings(teacher_weight=1.0), signal=reference)
        loss, _ = head_losses(fit, {"lens": term})
        adam = self._optimizer()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.exit_path.lens_parameters():
            parameter.grad = sum_over_ranks(parameter.grad)
        adam.step()

    def _optimizer(self) -> torch.optim.Adam:
        if self._adam is None:
            self._adam = torch.optim.Adam(self.exit_path.lens_parameters(), lr=self.learning_rate)
        return self._adam

    def state_dict(self) -> dict[str, object]:
        """Lens and optimizer; empty before the first audit."""
        if self._adam is None or self.exit_path.lens is None:
            return {}
        return {"lens": self.exit_path.lens.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Takes them up again."""
        if state:
            lens: dict[str, Tensor] = state["lens"]  # type: ignore[assignment]
            self.exit_path.lens_like(lens["weight"]).load_state_dict(lens)
            self._optimizer().load_state_dict(state["adam"])  # type: ignore[arg-type]


def sum_over_ranks(tensor: Tensor | None) -> Tensor:
    """The sum over all ranks; the tensor itself where there is one rank."""
    assert tensor is not None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor
