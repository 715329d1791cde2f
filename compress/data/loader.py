"""Batches in an order that can be taken up again: for training, and plainly for validation."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from compress.errors import BadInput


class EpochOrder(DistributedSampler[Any]):
    """Row numbers of one rank: a pure function of (rows, seed, epoch, rank, world size).

    A `DistributedSampler`, so that Lightning sees that ranks are shared out already and leaves it
    alone. Every rank gets equally many rows: the last `rows % world_size` of an epoch's order wait
    for another epoch.

    Args:
        rows: of the data set.
        batch_size: a rank's; with `whole_batches` rows that fill none on all ranks are left out.
        shuffle: False keeps the data set's order in every epoch.
        seed: decides the orders of all epochs.
        rank: None asks `torch.distributed` at each epoch, and is 0 without it.
        world_size: likewise, and 1.
    """

    def __init__(
        self,
        *,
        rows: int,
        batch_size: int,
        shuffle: bool,
        whole_batches: bool,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Keeps the settings: the parent's would fix rank and world size before they are known."""
        self.rows, self.batch_size, self.shuffle, self.seed = rows, batch_size, shuffle, seed
        self.whole_batches, self._rank, self._world_size = whole_batches, rank, world_size
        self.epoch, self.first_batch = 0, 0

    @property
    def rank(self) -> int:  # type: ignore[override]
        """This process among those that share the rows."""
        return self._rank if self._rank is not None else _ask(distributed.get_rank, 0)

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """Processes that share the rows."""
        if self._world_size is not None:
            return self._world_size
        return _ask(distributed.get_world_size, 1)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the loader counts epochs by itself.

        Lightning counts an epoch that `max_steps` cut short as a whole one, so a run resumed from
        there would be told a later epoch than the one it stands in.
        """

    def __len__(self) -> int:
        """Rows of this rank in a whole epoch."""
        own = self.rows // self.num_replicas
        return own - own % self.batch_size if self.whole_batches else own

    def __iter__(self) -> Iterator[int]:
        """Row numbers from `first_batch` on."""
        if self.shuffle:
            # seed + epoch would make epoch 1 of seed 0 equal to epoch 0 of seed 1
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
            order_N = torch.randperm(self.rows, generator=generator)
        else:
            order_N = torch.arange(self.rows)
        own_N = order_N[self.rank :: self.num_replicas][: len(self)]
        yield from own_N[self.first_batch * self.batch_size :].tolist()


class ResumableLoader(DataLoader[Any]):
    """A training loader that goes on at the very batch where its saved state stood.

    Lightning saves and restores it by `state_dict` and `load_state_dict`. Rows are never read to
    be skipped; workers may be any number, also another one than before.

    Args:
        dataset: rows by number.
        batch_size: rows a batch and rank; what fills no batch is left to another epoch's order.
        seed: decides the orders of all epochs.
        shuffle: False keeps the data set's order.
        rank: None asks `torch.distributed`; so does None of `world_size`.
        world_size: ranks that share an epoch.
        num_workers: processes that load; 0 loads in this one.
        pin_memory: copy batches to page-locked memory, for a GPU.

    Raises:
        BadInput: an epoch has not one batch, or a state is of other data or sizes.

    >>> loader = ResumableLoader(torch.arange(8), batch_size=2, seed=1)
    >>> batches = iter(loader)
    >>> _ = next(batches); state = loader.state_dict(); rest = [b.tolist() for b in batches]
    >>> other = ResumableLoader(torch.arange(8), batch_size=2, seed=1)
    >>> other.load_state_dict(state); [b.tolist() for b in other] == rest
    True
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Starts at the first batch of epoch 0."""
        _check_batch(len(dataset), batch_size, world_size or 1)
        self.order = EpochOrder(
            rows=len(dataset), batch_size=batch_size, shuffle=shuffle, whole_batches=True,
            seed=seed, rank=rank, world_size=world_size,
        )  # fmt: skip
        self._stand = self._next = (0, 0)  # epoch and batches handed out of it
        super().__init__(
            dataset, batch_size=batch_size, sampler=self.order, drop_last=True,
            num_workers=num_workers, pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # of its own: starting an epoch must not draw from the model's random numbers
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The rest of the epoch that was resumed, or a whole one; then counts the epoch up."""
        self.order.epoch, self.order.first_batch = self._next
        epoch, first = self._next
        self._next = (epoch, 0)  # left before its end, an epoch begins anew
        _check_batch(self.order.rows, self.order.batch_size, self.order.num_replicas)
        for number, batch in enumerate(_told(super().__iter__()), start=first + 1):
            self._stand = (epoch, number)
            yield batch
        self._next = (epoch + 1, 0)

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: epoch and batches handed out of it."""
        epoch, batch = self._stand
        return {"epoch": epoch, "batch": batch, **self._facts()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken.

        Raises:
            BadInput: it was taken with other data, another seed, batch size or number of ranks.
        """
        now = self._facts()
        other = [f"{k} was {state[k]}, is {v}" for k, v in now.items() if state[k] != v]
        if other:
            raise BadInput(
                "the checkpoint's place in the data means nothing here: " + "; ".join(other)
                + ". Resume with the same data and sizes, or start a new run"
            )  # fmt: skip
        epoch, batch = state["epoch"], state["batch"]
        if batch >= len(self):
            epoch, batch = epoch + 1, 0
        self._stand = self._next = (epoch, batch)

    def _facts(self) -> dict[str, int]:
        order = self.order
        return {
            "rows": order.rows, "batch_size": order.batch_size, "seed": order.seed,
            "world_size": order.num_replicas,
        }  # fmt: skip


def sequential_loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    rank: int | None = None,
    world_size: int | None = None,
    num_workers: int = 0,
) -> DataLoader[Any]:
    """Validation batches: all rows in their order, a shorter last batch, no state.

    With several ranks each takes every `world_size`-th row, equally many of them, since sharded
    models hang where ranks run unequally often.
    """
    order = EpochOrder(
        rows=len(dataset), batch_size=batch_size, shuffle=False, whole_batches=False,  # type: ignore[arg-type]
        rank=rank, world_size=world_size,
    )  # fmt: skip
    return DataLoader(
        dataset, batch_size=batch_size, sampler=order, num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def _told(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; a loading process that was killed is told in our words."""
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise BadInput(
            f"a process that loads data was ended ({str(error).splitlines()[0]}), most likely for "
            "want of memory: use fewer trainer.workers (0 loads in the run's own "
            "process) and go on with ckpt=last"
        ) from error


def _check_batch(rows: int, batch_size: int, world_size: int) -> None:
    if rows < batch_size * world_size:
        raise BadInput(
            f"the train part has {rows} sequences, one step takes {batch_size * world_size} "
            f"(batch_size={batch_size} on {world_size} ranks): give more data, or a smaller "
            "trainer.batch_size"
        )


def _ask(question: Any, alone: int) -> int:
    if distributed.is_available() and distributed.is_initialized():
        return int(question())
    return alone
