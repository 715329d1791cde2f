"""A long training with every callback, caches, checkpoints and loggers on: does anything grow?

    taskset -c 1 python benchmarks/soak.py minutes=120 out=docs/results/soak.json

Once a minute (`sample_seconds`) it notes memory, open files, threads, CPU time of a step, the same
over that of a fixed piece of work done after every step (programs beside it move both, through
caches and clocks; the ratio is the program's own) and the bytes on disk. It appends them to
`out`.jsonl and writes `out` anew: a line is fitted to each figure after the first `warmup` of the
time. A figure is flat where the slope's 95 % interval holds 0, or where its whole rise is no more
than the noise.
"""

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).parent))
import distill_runs
import slopes
import soak_setup
import words


@dataclass(frozen=True)
class Settings:
    """What `key=value` words change."""

    minutes: float = 120.0
    sample_seconds: float = 60.0
    warmup: float = 0.25
    checkpoint_every: int = 25
    seed: int = 0
    out: str = ""


FIGURES = {
    "memory (RSS)": ("rss_mb", "MB"),
    "memory of its own (anonymous)": ("anonymous_mb", "MB"),
    "memory of child processes": ("children_mb", "MB"),
    "open files": ("handles", ""),
    "threads": ("threads", ""),
    "Python objects": ("objects", ""),
    "CPU time of a step": ("step_cpu_ms", "ms"),
    "CPU time of a step over fixed work": ("step_over_fixed", ""),
    "checkpoints on disk": ("checkpoint_mb", "MB"),
    "teacher cache on disk": ("cache_mb", "MB"),
}
"""What must stay flat. Logs grow by design: a line a logged step."""


class Watch(L.Callback):
    """Takes a sample once in a while, and ends the training when its time is over."""

    def __init__(self, settings: Settings, places: dict[str, Path]) -> None:
        """`places` are the folders whose bytes are counted."""
        self.settings, self.places = settings, places
        self.samples: list[dict[str, float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """The clocks start."""
        self.start = self.due = time.monotonic()
        self.due += self.settings.sample_seconds
        self._count_anew(trainer)

    def _count_anew(self, trainer: L.Trainer) -> None:
        self.cpu, self.step, self.fixed = time.process_time(), trainer.global_step, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """The fixed work, and a sample where one is due."""
        self.fixed += soak_setup.fixed_work()
        now = time.monotonic()
        if now >= self.due and trainer.global_step > self.step:
            cpu = time.process_time()
            steps = trainer.global_step - self.step
            sample = {"hours": (now - self.start) / 3600, "step": trainer.global_step}
            own = cpu - self.cpu - self.fixed
            sample["step_cpu_ms"] = 1e3 * own / steps
            sample["step_over_fixed"] = own / self.fixed
            sample |= soak_setup.process_figures() | soak_setup.megabytes(self.places)
            self.samples.append(sample)
            self.due = now + self.settings.sample_seconds
            report(self.settings, self.samples)
            self._count_anew(trainer)
        trainer.should_stop = now - self.start >= 60 * self.settings.minutes


def report(settings: Settings, samples: list[dict[str, float]]) -> None:
    """Prints the newest sample; keeps it, and the table so far."""
    print(json.dumps({k: round(v, 4) for k, v in samples[-1].items()}), flush=True)
    if not settings.out:
        return
    Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
    with Path(settings.out).with_suffix(".jsonl").open("a") as stream:
        stream.write(json.dumps(samples[-1]) + "\n")
    kept = [s for s in samples if s["hours"] >= settings.warmup * settings.minutes / 60]
    if len(kept) >= 4:
        write(settings, kept, steps=int(samples[-1]["step"]), hours=samples[-1]["hours"])


def row(name: str, samples: list[dict[str, float]]) -> list[Any]:
    """One figure: where it lies, its slope with interval, whole rise, noise, verdict."""
    key, unit = FIGURES[name]
    line = slopes.fit([s["hours"] for s in samples], [s[key] for s in samples])
    slope = f"{line.per_hour:+.3g} [{line.low:+.3g}, {line.high:+.3g}]"
    verdict = "flat" if line.is_flat else "grows" if line.per_hour > 0 else "falls"
    named = f"{name} ({unit})" if unit else name
    return [named, f"{line.middle:.4g}", slope, f"{line.change:+.3g}", f"{line.noise:.3g}", verdict]


def write(settings: Settings, kept: list[dict[str, float]], *, steps: int, hours: float) -> None:
    """The table."""
    rows = [row(name, kept) for name in FIGURES]
    moving = [r[0] for r in rows if r[-1] != "flat"]
    logs = kept[-1]["log_mb"] - kept[0]["log_mb"]
    distill_runs.write(
        settings.out,
        title="Soak: a long training with everything on",
        question="Do memory, open files and the time of a step stay flat?",
        command="taskset -c 1 python benchmarks/soak.py "
        f"minutes={settings.minutes:g} seed={settings.seed} out={settings.out}",
        columns=["figure", "mean", "an hour [95 %]", "rise in all", "noise", "verdict"],
        rows=rows,
        notes=[
            f"{hours * 60:.0f} minutes, {steps} optimizer steps; fitted to the {len(kept)} samples "
            f"after the first {settings.warmup:.0%} of the time.",
            f"On: {soak_setup.ON}; a checkpoint every {settings.checkpoint_every} steps.",
            "Flat: the slope's interval holds 0 (its error widened for samples that depend on the "
            "ones before), or the whole rise is no more than the noise.",
            f"Not flat: {', '.join(moving) or 'none'}. Logs grew by {logs:.2f} MB, as they must.",
        ],
    )  # fmt: skip


def main() -> None:
    """Trains until the time is over."""
    torch.set_num_threads(1)
    settings = words.read(Settings, sys.argv[1:])
    os.environ.setdefault("WANDB_MODE", "offline")
    if settings.out:
        Path(settings.out).with_suffix(".jsonl").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        soak_setup.train(
            Path(folder), seed=settings.seed, checkpoint_every=settings.checkpoint_every,
            watch=lambda places: Watch(settings, places),
        )  # fmt: skip


if __name__ == "__main__":
    main()
