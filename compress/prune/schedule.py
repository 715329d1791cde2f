"""When structured masks change and how far: pure functions of the optimizer step."""

from dataclasses import dataclass, replace

from compress.errors import BadInput
from compress.prune.plan import PruneSizes
from compress.schedule import Moment, cubic, steps_of


@dataclass(frozen=True, kw_only=True)
class PruneSchedule:
    """From dense at `start` to the final sizes at `stop`, fast first (Zhu & Gupta 2017, eq. 1).

    Args:
        start: first optimizer step with masks; 0 masks before the first step.
        stop: the last update, with the final sizes; equal to `start` prunes once.
        every: optimizer steps between updates. All three may be fractions (0.3) of a run.

    Raises:
        BadInput: they contradict each other.
    """

    start: Moment = 0
    stop: Moment = 0.3
    every: Moment = 0.05

    def __post_init__(self) -> None:
        """Checks the order where both ends are of one kind."""
        comparable = type(self.start) is type(self.stop) or self.start == 0
        if min(self.start, self.stop, self.every) < 0 or not self.every:
            raise BadInput(f"start={self.start}, stop={self.stop}, every={self.every}: below zero")
        if comparable and self.start > self.stop:
            raise BadInput(f"start={self.start} comes after stop={self.stop}")

    def over(self, total: int, *, resumed: bool = False) -> "PruneSchedule":
        """The schedule in optimizer steps of a run of `total` steps.

        Args:
            total: optimizer steps of the whole run.
            resumed: the run was let through before; it may be taken up to be looked at alone.

        Raises:
            BadInput: `stop` comes after the run's end: the model would not reach its sizes.
        """
        if isinstance(self.stop, int) and self.stop > total and not resumed:
            raise BadInput(
                f"stop={self.stop}, but the run ends after {total} optimizer steps, before the "
                "model has its final widths; use a fraction of the run (stop=0.3), or train longer"
            )
        return replace(
            self,
            start=steps_of(self.start, total=total),
            stop=steps_of(self.stop, total=total),
            every=max(steps_of(self.every, total=total), 1),
        )

    def updates_at(self, step: int) -> bool:
        """Whether the masks change after `step` optimizer steps."""
        if not self.start <= step <= self.stop:
            return False
        return step == self.stop or (step - self.start) % self.every == 0

    def sizes_at(self, sizes: PruneSizes, *, step: int, layers: int) -> PruneSizes:
        """How much stays after `step` steps.

        Args:
            sizes: the final sizes.
            step: optimizer steps made.
            layers: whole layers of the dense model.
        """
        if step >= self.stop:
            return sizes

        def now(final: float) -> float:
            return cubic(step, start=self.start, stop=self.stop, first=1.0, last=final)

        kept = None if sizes.layers is None else round(layers * now(sizes.layers / layers))
        return replace(
            sizes,
            ffn_density=now(sizes.ffn_density),
            heads_density=now(sizes.heads_density),
            kv_density=now(sizes.kv_density),
            hidden_density=now(sizes.hidden_density),
            layers=kept,
        )
