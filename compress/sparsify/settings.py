"""What a dynamic mask does at which optimizer step: pure functions of the step, nothing to save."""

from dataclasses import dataclass, replace

from compress.errors import BadInput, UnsupportedScheme
from compress.schedule import Moment, cosine, cubic, steps_of
from compress.sparsify.masks import Pattern

GROWTHS = ("none", "random", "gradient", "magnitude", "phases")
BUDGETS = ("uniform", "erk", "global")
SCHEDULES = ("constant", "cubic")


@dataclass(frozen=True, kw_only=True)
class SparsitySettings:
    """Settings of one mechanism: a forward mask, a backward mask, and updates every few steps.

    Args:
        density: share of weights kept in the end; 1.0 is dense. An N:M pattern is N / M: None
            takes that.
        pattern: `unstructured`, `N:M` (`2:4`, `4:8`) or `RxC` blocks (`16x16`).
        budget: `uniform` over layers, `erk` (Evci 2020: wide layers sparser) or `global` (one
            threshold for all layers: a layer may become empty at very low density).
        growth: which entries come back: `none`; `random` (SET, Mocanu 2018); `gradient` (RigL,
            Evci 2020); `magnitude` (unused entries learn on and return when they are large:
            SR-STE, Zhou 2021, or Top-KAST with `backward_density` below 1); `phases` (AC/DC,
            Peste 2021: sparse and dense phases of `every` steps, sparse from `stop` on).
        schedule: `constant`, or `cubic` from dense at `start` to `density` at `stop`.
        start: first optimizer step with a mask; 0 masks before the first step.
        stop: the last update; from here on the mask stands.
        every: optimizer steps between updates. These three may be fractions (0.75) of a run, until
            `over` puts steps in their place.
        share: share of kept entries that is exchanged at `start`, decaying as a cosine to none
            at `stop`; only with growth `random` and `gradient`. 0.0 exchanges none.
        backward_density: share of weights that learn, with growth `magnitude`; 1.0 is all.
        decay: pull to zero on entries that learn but are not used, as a multiple of the weight
            added to its gradient (growth `magnitude` alone). 0.0 lets them grow freely; the
            paper's 2e-4 is for SGD: Adam divides gradients by their size, and drowns it.
        seed: of random growth.

    Raises:
        BadInput, UnsupportedScheme: settings that are unknown or contradict each other.
    """

    density: float | None = None
    pattern: str = "unstructured"
    budget: str = "uniform"
    growth: str = "magnitude"
    schedule: str = "constant"
    start: Moment = 0
    stop: Moment = 0.75
    every: Moment = 0.05
    share: float = 0.3
    backward_density: float = 1.0
    decay: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks each setting, then how they go together."""
        for name, known in (("growth", GROWTHS), ("budget", BUDGETS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise BadInput(f"{name}={getattr(self, name)!r} is unknown; use one of {known}")
        moments = (self.start, self.stop, self.every)
        comparable = isinstance(self.start, int) == isinstance(self.stop, int) or self.start == 0
        if min(moments) < 0 or not self.every or (comparable and self.start >= self.stop):
            raise BadInput(
                f"start={self.start}, stop={self.stop}, every={self.every}: "
                "they must be 0 <= start < stop and every > 0"
            )
        self._check_density()
        if not 0.0 <= self.share <= 1.0 or self.decay < 0.0:
            raise BadInput(f"share={self.share} must be in [0, 1], decay={self.decay} not negative")
        if self.growth == "phases" and self.schedule == "cubic":
            raise BadInput("growth=phases has dense phases of its own: use schedule=constant")

    def _check_density(self) -> None:
        pattern = self.parsed_pattern
        if pattern.group > 1:
            wanted = pattern.kept / pattern.group
            if self.density not in (None, wanted):
                raise UnsupportedScheme(
                    f"pattern={self.pattern} is density {wanted}, but density={self.density} is "
                    "asked; leave density=null"
                )
            if self.budget != "uniform":
                raise UnsupportedScheme(
                    f"pattern={self.pattern} keeps the same of every group: budget={self.budget} "
                    "cannot move weights between layers; use budget=uniform"
                )
        elif self.density is None or not 0.0 < self.density <= 1.0:
            raise BadInput(f"density={self.density} must be a share in (0, 1]")
        if not self.final_density <= self.backward_density <= 1.0:
            raise BadInput(
                f"backward_density={self.backward_density} must lie between "
                f"density={self.final_density} and 1.0"
            )

    def over(self, total: int, *, resumed: bool = False) -> "SparsitySettings":
        """These settings with fractions as optimizer steps of a run of `total` steps.

        Args:
            total: optimizer steps of the whole run.
            resumed: the run was let through before; it may be taken up to be looked at alone.

        Raises:
            BadInput: `stop` comes after the run's end, where the schedule would be cut off.
        """
        if isinstance(self.stop, int) and self.stop > total and not resumed:
            raise BadInput(
                f"stop={self.stop}, but the run ends after {total} optimizer steps, before the "
                "masks are final; use a fraction of the run (stop=0.75), or train longer"
            )
        return replace(
            self,
            start=steps_of(self.start, total=total),
            stop=max(steps_of(self.stop, total=total), 1),
            every=max(steps_of(self.every, total=total), 1),
        )

    def require_steps(self) -> None:
        """Refuse fractions where steps are needed.

        Raises:
            BadInput: naming them.
        """
        fractions = [n for n in ("start", "stop", "every") if type(getattr(self, n)) is float]
        if fractions:
            raise BadInput(
                f"{', '.join(fractions)} are fractions of a run whose length is not known here: "
                "call settings.over(total_steps) first, or give whole numbers of steps"
            )

    @property
    def parsed_pattern(self) -> Pattern:
        """The pattern, parsed."""
        return Pattern.parse(self.pattern)

    @property
    def final_density(self) -> float:
        """The density in the end."""
        pattern = self.parsed_pattern
        return pattern.kept / pattern.group if self.density is None else self.density

    @property
    def superset(self) -> bool:
        """Whether the backward mask is one of its own (Top-KAST)."""
        return self.growth == "magnitude" and self.backward_density < 1.0

    def updates_at(self, step: int) -> bool:
        """Whether the masks change after `step` optimizer steps."""
        if not self.start <= step <= self.stop:
            return False
        return step == self.stop or (step - self.start) % self.every == 0

    def density_at(self, step: int) -> float:
        """Share kept from `step` on."""
        if step < self.start or self._dense_phase(step):
            return 1.0
        if self.schedule == "constant":
            return self.final_density
        return cubic(step, start=self.start, stop=self.stop, first=1.0, last=self.final_density)

    def backward_density_at(self, step: int) -> float:
        """Share that learns from `step` on, never below the share that is used."""
        if self.growth != "magnitude" or step >= self.stop:
            return self.density_at(step)
        return max(self.backward_density, self.density_at(step))

    def share_at(self, step: int) -> float:
        """Share of kept entries exchanged at the update after `step`."""
        if self.growth not in ("random", "gradient") or step <= self.start:
            return 0.0
        return cosine(step, start=self.start, stop=self.stop, first=self.share, last=0.0)

    def dense_backward_before(self, step: int) -> bool:
        """Whether the gradient that optimizer step number `step` uses is dense (1 is the first)."""
        if self.growth == "gradient":
            return self.reads_gradient_at(step)
        unused_learn = self.growth == "magnitude" and self.backward_density == 1.0
        return unused_learn and self.start < step <= self.stop

    def reads_gradient_at(self, step: int) -> bool:
        """Whether the update after `step` grows by gradient."""
        return self.growth == "gradient" and self.updates_at(step) and self.share_at(step) > 0.0

    def zeroes_unused_at(self, step: int) -> bool:
        """Whether entries that may not learn are set to zero: nobody will read their value again."""  # noqa: E501
        return self.growth != "magnitude" or step >= self.stop

    def _dense_phase(self, step: int) -> bool:
        if self.growth != "phases" or step >= self.stop:
            return False
        return (step - self.start) // self.every % 2 == 1
