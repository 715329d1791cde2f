"""A dense teacher signal, read row by row: which rows it covers, and their logits.

Legend: B sequences, S sequences the teacher saw, L positions, C rows of a chunk,
K rows of these that the teacher covers, V vocabulary, H hidden.
"""

import torch
from torch import Tensor

from compress.contract import DenseSignal, Head
from compress.errors import BadInput

PADDING_LIMIT = 1024
"""Vocabularies may differ by this many rows before the difference counts as more than padding."""


class TeacherRows:
    """The teacher's logits for some rows of the flattened (B * L) positions, made on demand.

    The head multiplies in the autocast dtype that holds where this object is made.

    Raises:
        BadInput: the signal carries no logits, or its positions are not the student's.
    """

    def __init__(self, signal: DenseSignal, *, sequences: int, length: int) -> None:
        """`sequences` and `length` are B and L of the student's batch."""
        hidden_SLH, head = signal.hidden_SLH, signal.head
        if hidden_SLH is None or head is None:
            raise BadInput("this teacher signal holds no logits; the callback must want them")
        covered = sequences if signal.sequences_S is None else signal.sequences_S.numel()
        if tuple(hidden_SLH.shape[:2]) != (covered, length):
            raise BadInput(
                f"the teacher's positions {tuple(hidden_SLH.shape[:2])} are not the student's "
                f"{(covered, length)}: both must read the same tokens"
            )
        dtype = _matmul_dtype(hidden_SLH)
        self._hidden = hidden_SLH.flatten(0, 1).to(dtype)
        # cast once a step, not once a chunk
        self._head = Head(weight_VH=head.weight_VH.to(dtype), bias_V=head.bias_V)
        chosen = signal.sequences_S
        self._length = length
        self._slots_B = None if chosen is None else _slots(chosen, sequences)

    @property
    def vocab_size(self) -> int:
        """Rows of the teacher's head."""
        return self._head.weight_VH.shape[0]

    def covered(self, rows_C: Tensor) -> Tensor | None:
        """Which of the chunk's rows the teacher saw, as indices (K,); None for all of them."""
        if self._slots_B is None:
            return None
        return (self._slots_B[rows_C // self._length] >= 0).nonzero().squeeze(-1)

    def logits(self, rows_K: Tensor, *, size: int) -> Tensor:
        """fp32 logits (K, size) of rows that the teacher saw; only the first `size` tokens."""
        if self._slots_B is not None:
            sequences_K = rows_K // self._length
            rows_K = self._slots_B[sequences_K] * self._length + rows_K % self._length
        weight_VH, bias_V = self._head.weight_VH[:size], self._head.bias_V
        head = Head(weight_VH=weight_VH, bias_V=None if bias_V is None else bias_V[:size])
        logits = head(self._hidden.index_select(0, rows_K))
        return logits if logits.dtype == torch.float64 else logits.float()

    def log_probs(self, rows_K: Tensor, *, size: int, temperature: float = 1.0) -> Tensor:
        """Log softmax(logits / temperature) over the first `size` tokens; a new tensor."""
        logits = self.logits(rows_K, size=size)
        if temperature != 1.0:
            logits /= temperature
        return torch.log_softmax(logits, dim=-1)


def common_vocabulary(student: int, teacher: int, *, vocab_size: int | None = None) -> int:
    """How many first tokens both heads share; what lies beyond is padding.

    Args:
        student: rows of the student's head.
        teacher: rows of the teacher's head.
        vocab_size: the tokenizer's true size, where known; None takes the smaller head.

    Raises:
        BadInput: the heads differ by more than padding can explain, or `vocab_size` exceeds one.

    >>> common_vocabulary(151936, 152064)
    151936
    """
    smaller = min(student, teacher)
    if vocab_size is not None:
        if not 0 < vocab_size <= smaller:
            raise BadInput(f"vocab_size={vocab_size} exceeds a head: {student=}, {teacher=} rows")
        return vocab_size
    if abs(student - teacher) > PADDING_LIMIT:
        raise BadInput(
            f"the student's vocabulary has {student} rows, the teacher's {teacher}: more apart "
            f"than padding explains ({PADDING_LIMIT}). If both use one tokenizer, set its size: "
            "vocab_size=...; models of two tokenizers cannot be compared token by token"
        )
    return smaller


def _slots(sequences_S: Tensor, sequences: int) -> Tensor:
    slots_B = torch.full((sequences,), -1, dtype=torch.long, device=sequences_S.device)
    slots_B[sequences_S] = torch.arange(sequences_S.numel(), device=sequences_S.device)
    return slots_B


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype == torch.float32:
        return torch.get_autocast_dtype(kind)
    return hidden.dtype
