"""Short trainings of a shallow student under the project's own callbacks, without a trainer.

What the tables of distillation share: subjects, one training loop, kept measurements, results file.
Subjects: `stories` (`stories.adapted()`, real weights) and `checkpoint=DIR data=FILE.pt`.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import stories


class Both(nn.Module):
    """Student and teacher as callbacks expect them on a LightningModule."""

    def __init__(self, student: nn.Module, teacher: Any) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher


class Sometimes:
    """A callback's losses in some steps alone: in the others labels have the teacher's weight."""

    uses_teacher = True

    def __init__(self, callback: Any, *, when: Callable[[int], bool]) -> None:
        self.callback, self.when = callback, when

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        """The callback's own."""
        self.callback.setup(trainer, module, stage)

    def want(self) -> Any:
        """The callback's own."""
        return self.callback.want()

    def losses(self, step: Any) -> Iterator[Any]:
        """The callback's own, or the labels'."""
        from compress.distill.terms import LabelLoss

        if self.when(step.number):
            yield from self.callback.losses(step)
        else:
            yield "instead", LabelLoss(weight=self.callback.settings.teacher_weight)


def train(
    student: Any,
    teacher: Any,
    callbacks: Sequence[Any],
    rows_RL: Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    label_weight: float,
) -> Any:
    """AdamW, warm-up and cosine; batches follow from the seed, whatever the callbacks."""
    from compress.contract import Step, union_of_wants
    from compress.joint_loss import joint_loss
    from compress.models import trace_causal_lm
    from compress.parameter_groups import parameter_groups
    from compress.schedule import warmup_cosine

    both = Both(student, teacher)
    for callback in callbacks:
        callback.setup(None, both, "fit")
    groups = list(parameter_groups(both, learning_rate, 0.0))
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, warmup=20, total=steps)
    )
    source = stories.batches(rows_RL, batch=batch, seed=seed)
    student.train()
    for number in range(steps):
        data = next(source)
        step = Step(batch=data, student=trace_causal_lm(student, data), teacher=teacher,
                    want=union_of_wants(callbacks), number=number)  # fmt: skip
        loss, _ = joint_loss(step, callbacks, label_weight=label_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return student


def sequence_losses(model: Any, rows_RL: Tensor, *, batch: int = 64) -> list[float]:
    """Mean nats a token of each row."""
    from compress.evaluate.quality import token_loss

    found = token_loss(model, [{"input_ids": r, "labels": r} for r in rows_RL.split(batch)])
    return [s / n for s, n in zip(found.sequence_losses, found.sequence_tokens, strict=True)]


class Kept:
    """Measurements by what was asked: a stopped table goes on where it stood."""

    def __init__(self, name: str) -> None:
        self.path = stories.cache_folder() / f"{name}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.known = {line["key"]: line for line in map(json.loads, lines)}

    def measured(self, asked: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> Any:
        """What `measure` answers, once for each question."""
        key = json.dumps(asked, sort_keys=True)
        if key not in self.known:
            begin = time.perf_counter()
            self.known[key] = {"key": key, **measure()}
            with self.path.open("a") as stream:
                stream.write(json.dumps(self.known[key]) + "\n")
            seconds = round(time.perf_counter() - begin, 1)
            mean = statistics.mean(self.known[key]["losses"])
            print(json.dumps({**asked, "loss": round(mean, 5), "seconds": seconds}), flush=True)
        return self.known[key]


def settings_of(words: list[str], known: dict[str, str]) -> dict[str, str]:
    """`key=value` words over the known ones; an unknown key stops."""
    given = dict(word.split("=", 1) for word in words)
    if unknown := given.keys() - known.keys():
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return {**known, **given}


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval over seeds (Student's t)."""
    factors = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = factors.get(len(values), 2.262) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def shown(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def difference(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ours minus theirs, paired by seed, with its 95 % interval."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, low, high = t_interval(gaps)
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def write(path: str, **facts: Any) -> None:
    """The results file."""
    with open("/proc/cpuinfo") as lines:
        named = next((x for x in lines if x.startswith("model name")), ": unknown")
    machine = f"{named.partition(':')[2].strip()}, {torch.get_num_threads()} thread"
    document = {**facts, "machine": machine, "date": time.strftime("%Y-%m-%d")}
    order = ("title", "question", "command", "machine", "date", "columns", "rows", "notes")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({key: document[key] for key in order}, indent=1, ensure_ascii=False)
    Path(path).write_text(text + "\n")
