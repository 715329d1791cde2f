"""A student whose weights, gradients and moments are shared out over ranks (PyTorch FSDP2).

What belongs here: sharding a student, seeing it whole for a moment, and making it whole again.
Nothing changes for a student that is not sharded: every function below then does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import BadInput
from compress.models import PASS, backbone_pass, layer_list_of

_HELD = "_compress_sharding"


class Sharding:
    """The blocks of a student, each gathered before it runs and let go after it.

    A forward sees whole weights, so masks and quantisers (parametrisations) work as on one rank.
    What lies outside the blocks (embeddings, last norm, head) is one group of its own, gathered
    from the start of a forward until the end of the backward: the chunked loss reads the head's
    weight long after the forward.

    Args:
        student: a Hugging Face model, its transforms attached; changed in place.
        mesh: one-dimensional, over the ranks.
        beside: further modules that learn (projectors), each sharded as a whole.

    Raises:
        BadInput: a parameter is a scalar, which cannot be shared out.
        UnsupportedModel: the student keeps no list of its blocks.
    """

    def __init__(self, student: nn.Module, mesh: Any, *, beside: list[nn.Module]) -> None:
        """Every rank keeps its share of every parameter from here on."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        _refuse_scalars(student)
        self.student, self.beside, self.is_whole = student, beside, False
        self.parts = [*layer_list_of(student)[1], student, *beside]
        self._classes = {part: type(part) for part in self.parts}
        before = {part: set(part.__dict__) for part in self.parts}
        if hasattr(student, "base_model_prefix"):
            student.__dict__[PASS] = lambda batch: backbone_pass(student, batch)
        for part in self.parts:
            fully_shard(part, mesh=mesh)
        register_fsdp_forward_method(student, PASS)
        self._added = {part: set(part.__dict__) - before[part] for part in self.parts}
        self._lets_go = student.register_forward_hook(self._let_go)
        object.__setattr__(student, _HELD, self)

    def _let_go(self, student: Any, _args: Any, _output: Any) -> None:
        # no backward follows that would: callbacks then find the shares that the optimizer has
        if not (torch.is_grad_enabled() or self.is_whole):
            student.reshard()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Whole weights on every rank; what is changed in them stays.

        Forward passes inside need no other rank. There is no backward inside: it would sum
        gradients over ranks and let the weights go.
        """
        if self.is_whole:
            yield
            return
        shards = self._shards()
        for part in self.parts:
            part.unshard()  # type: ignore[operator]
            part.set_reshard_after_forward(False, recurse=False)  # type: ignore[operator]
        self.is_whole = True
        try:
            yield
        finally:
            for name, parameter in self.student.named_parameters():
                write(shards[name], parameter)
            for part in self.parts:
                part.reshard()  # type: ignore[operator]
                is_root = part is self.student or part in self.beside
                part.set_reshard_after_forward(not is_root, recurse=False)  # type: ignore[operator]
            self.is_whole = False

    def _shards(self) -> dict[str, Tensor]:
        for part in self.parts:
            part.reshard()  # type: ignore[operator]
        return dict(self.student.named_parameters())

    @torch.no_grad()
    def undo(self) -> None:
        """An ordinary module again on every rank, with whole weights and without gradients."""
        shards = self._shards()  # held to the end: `made` tells them apart by their ids
        self._lets_go.remove()
        made: dict[int, nn.Parameter] = {}  # a shared parameter stays shared
        for module in [m for part in (self.student, *self.beside) for m in part.modules()]:
            for name, shard in module._parameters.items():
                if shard is not None:
                    whole = made.get(id(shard))
                    if whole is None:
                        whole = nn.Parameter(gathered(shard), requires_grad=shard.requires_grad)
                        made[id(shard)] = whole
                    module._parameters[name] = whole
            _drop_hooks(module)
        for part, ordinary in self._classes.items():
            part.__class__ = ordinary
            for key in self._added[part]:
                part.__dict__.pop(key, None)
        shards.clear()
        object.__delattr__(self.student, _HELD)


def _refuse_scalars(student: nn.Module) -> None:
    scalars = [name for name, p in student.named_parameters() if p.dim() == 0]
    if scalars:
        raise BadInput(
            f"trainer=fsdp2: a scalar cannot be shared out over ranks: {', '.join(scalars)}. Make "
            "them tensors of one element, or use trainer=ddp"
        )


def _drop_hooks(module: nn.Module) -> None:
    """Removes what FSDP2 registered; its handles are not public."""
    tables = [t for k, t in module.__dict__.items() if k.endswith("_hooks") and isinstance(t, dict)]
    for table in tables:
        for key, hook in list(table.items()):
            if "distributed.fsdp" in str(getattr(hook, "__module__", "")):
                del table[key]


def sharding_of(student: nn.Module) -> Sharding | None:
    """How this student is shared out; None where it is whole."""
    return getattr(student, _HELD, None)


@contextmanager
def whole_weights(student: nn.Module) -> Iterator[None]:
    """`Sharding.whole` where the student is sharded; every rank must enter."""
    sharding = sharding_of(student)
    if sharding is None:
        yield
        return
    with sharding.whole():
        yield


def make_whole(student: nn.Module) -> None:
    """`Sharding.undo` where the student is sharded; every rank must call."""
    if (sharding := sharding_of(student)) is not None:
        sharding.undo()


def is_shard(tensor: Any) -> bool:
    """Whether this is a tensor of which the rank holds a share."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """This rank's share, sharing its memory; an ordinary tensor itself."""
    share: Tensor = tensor.to_local() if is_shard(tensor) else tensor
    return share


def gathered(tensor: Any) -> Tensor:
    """The whole tensor, on every rank (all must call); an ordinary tensor itself."""
    whole: Tensor = tensor.full_tensor().detach() if is_shard(tensor) else tensor
    return whole


@torch.no_grad()
def write(tensor: Tensor, whole: Tensor) -> None:
    """Take over a whole tensor's values: this rank's share of them, or all."""
    if tensor is not whole:
        local(tensor).copy_(share_of(whole, tensor))


def share_of(whole: Tensor, like: Any) -> Tensor:
    """The rows of `whole` that this rank holds of a tensor shared out as `like` is; else all."""
    if not is_shard(like):
        return whole
    (placement,), mesh = like.placements, like.device_mesh
    parts = torch.chunk(whole, mesh.size(), dim=placement.dim)
    rank = mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else whole.narrow(placement.dim, 0, 0)


def shared_out(whole: Tensor, like: Any) -> Tensor:
    """A whole tensor (equal on every rank) as one that is shared out as `like` is."""
    from torch.distributed.tensor import DTensor

    mine = share_of(whole, like).to(like.device).clone()
    return DTensor.from_local(
        mine, like.device_mesh, like.placements, shape=whole.shape, stride=whole.stride(),
        run_check=False,
    )  # fmt: skip
