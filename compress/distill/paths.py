"""The ways a row can take through a teacher.

Legend: S chosen sequences.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.contract import Batch, DenseSignal, Teacher, TopKSignal, Want
from compress.distill.layer_maps import layer_names
from compress.errors import BadInput

LOGITS = Want(logits=True)


def rows_of(batch: Batch, rows_S: Tensor) -> dict[str, Tensor]:
    """The batch of some sequences alone."""
    return {key: value.index_select(0, rows_S.to(value.device)) for key, value in batch.items()}


class FullPath:
    """The whole of a teacher.

    Args:
        teacher: any teacher.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def __call__(self, batch: Batch) -> DenseSignal | TopKSignal:
        """Its answer to the rows of this batch."""
        return self.teacher.signal(batch, LOGITS)


class ExitPath:
    """A teacher's first layers, its final norm and head, behind a learned affine map.

    The map starts as the identity and is fitted to what the whole teacher says (a tuned lens,
    Belrose et al. 2023, arXiv 2303.08112), on audited rows: an exit is calibrated, never assumed.

    Args:
        teacher: a teacher with its model in this process.
        layers: how many layers to run; all of them is the full path at its full price.

    Raises:
        BadInput: the teacher has no model here, or not that many layers.
    """

    def __init__(self, teacher: Any, *, layers: int) -> None:
        model = getattr(teacher, "model", None)
        if not isinstance(model, nn.Module):
            raise BadInput("an exit needs a teacher whose layers are in this process; drop exits")
        depth = len(layer_names(model))
        if not 0 < layers < depth:
            raise BadInput(
                f"exit after {layers} layers: the teacher has {depth}, use 1 to {depth - 1}"
            )
        self.teacher, self.model, self.layers = teacher, model, layers
        self.lens: nn.Linear | None = None

    def __call__(self, batch: Batch) -> DenseSignal:
        """Hidden states (through the lens, without gradient) and head of these rows."""
        signal = self.raw(batch)
        with torch.no_grad():
            return self.through_lens(signal)

    def raw(self, batch: Batch) -> DenseSignal:
        """As `__call__`, before the lens."""
        with only_layers(self.model, self.layers):
            signal: DenseSignal = self.teacher.signal(batch, LOGITS)
        return signal

    def through_lens(self, signal: DenseSignal) -> DenseSignal:
        """The lens applied, with a gradient into it where that is enabled."""
        assert signal.hidden_SLH is not None
        lens = self.lens_like(signal.hidden_SLH)
        with torch.autocast(signal.hidden_SLH.device.type, enabled=False):
            hidden = lens(signal.hidden_SLH.float()).to(signal.hidden_SLH.dtype)
        return DenseSignal(hidden_SLH=hidden, head=signal.head, sequences_S=signal.sequences_S)

    def lens_like(self, hidden: Tensor) -> nn.Linear:
        """The lens, made at its first use, on the device of `hidden`."""
        if self.lens is None:
            width = hidden.shape[-1]
            self.lens = nn.utils.skip_init(nn.Linear, width, width)
            with torch.no_grad():
                self.lens.weight.copy_(torch.eye(width))
                self.lens.bias.zero_()
        return self.lens.to(hidden.device)

    def lens_parameters(self) -> list[nn.Parameter]:
        """What a fit moves; empty before the first use."""
        return [] if self.lens is None else list(self.lens.parameters())


@contextmanager
def only_layers(model: nn.Module, count: int) -> Iterator[None]:
    """The model with its first `count` blocks alone, inside this context."""
    listed = layer_names(model)[0].rpartition(".")[0]
    owner_name, _, attribute = listed.rpartition(".")
    owner = model.get_submodule(owner_name)
    whole: nn.ModuleList = getattr(owner, attribute)
    try:
        setattr(owner, attribute, nn.ModuleList(list(whole)[:count]))
        yield
    finally:
        setattr(owner, attribute, whole)


def make_paths(
    teacher: Teacher, others: Mapping[str, Teacher], names: Iterable[str]
) -> dict[str, FullPath | ExitPath]:
    """The paths that are named, `full` first: `full`, `exit<layers>`, or one of the others.

    Raises:
        BadInput: a name is none of these, or the teacher has no such exit.
    """
    paths: dict[str, FullPath | ExitPath] = {"full": FullPath(teacher)}
    for name in names:
        number = name.removeprefix("exit")
        if name in others:
            paths[name] = FullPath(others[name])
        elif name != "full" and name.startswith("exit") and number.isdigit():
            paths[name] = ExitPath(teacher, layers=int(number))
        elif name != "full":
            known = ["full", "exit<layers>", *others]
            raise BadInput(f"capacities name no path: {name!r}; use {', '.join(known)}")
    return paths
