"""Does routing save the teacher's work? Arms of equal steps, against the always-full teacher.

    COMPRESS_TEST_DATA=DIR python benchmarks/routing_table.py out=docs/results/routing.json

The margin was fixed before the first run: 0.01 nats/token (1 % of perplexity) above the always-full
teacher, at half of its FLOPs or less (`torch.utils.flop_counter`, audits and heads included). Arms
of as many rows a step see the same batches; differences are paired by seed. Some arms put the
FLOPs that the teacher saves into more label rows a step, so that a whole step costs no more.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import distill_runs as runs
import stories

MARGIN, MOST_FLOPS = 0.01, 0.5
MORE_ROWS = 21 / 16
"""Rows a step that cost, taught by half of the teacher, what always-full costs on 16."""
LABEL_ROWS = 27 / 16
"""Likewise without any teacher."""
DEFAULTS = {
    "seeds": "0,1,2,3,4", "steps": "300", "batch": "16", "layers": "2", "rows": "512",
    "learning_rate": "2e-3", "teacher_weight": "0.9", "capacity": "0.375", "arms": "", "out": "",
}  # fmt: skip


def arms(settings: dict[str, str]) -> dict[str, Callable[[int], list[Any]]]:
    """Name to callbacks of a seed."""
    from compress.callbacks import RoutedDistillation

    share, steps = float(settings["capacity"]), int(settings["steps"])
    rows = int(settings["batch"])
    spent = share + 0.03  # audits learn too

    def routed(seed: int, **more: Any) -> Any:
        told = {"capacities": {"full": share}, **more}
        return RoutedDistillation(
            teacher_weight=float(settings["teacher_weight"]), seed=seed, **told
        )

    def full(seed: int) -> Any:
        return routed(seed, router="full", capacities={"full": 0.97})

    def some_steps(seed: int, when: Callable[[int], bool]) -> Any:
        return runs.Sometimes(full(seed), when=when)

    more = round(MORE_ROWS * int(settings["batch"]))
    half = {"start": round(0.04 * steps), "stop": round(0.54 * steps)}

    def at_random(seed: int, *, taught: int, of: int, **window: int) -> Any:
        return routed(
            seed, router="random", audit_share=0.0, capacities={"full": taught / of}, **window
        )

    def thin(seed: int, **more: Any) -> list[Any]:
        return [routed(seed, **more)]

    return {
        "always full": lambda seed: [full(seed)],
        "labels only": lambda seed: [],
        "routed by worth": lambda seed: thin(seed),
        "random rows": lambda seed: thin(seed, router="random"),
        "hardest rows": lambda seed: thin(seed, router="hardest"),
        "easiest rows": lambda seed: thin(seed, router="easiest"),
        "a full step every so often": lambda seed: [
            some_steps(seed, lambda number: int((number + 1) * spent) > int(number * spent))
        ],
        "full in the first steps": lambda seed: [
            some_steps(seed, lambda number: number < spent * steps)
        ],
        "full in the last steps": lambda seed: [
            some_steps(seed, lambda number: number >= (1 - spent) * steps)
        ],
        "worth by entropy": lambda seed: thin(seed, measure="entropy"),
        "worth, fewer rows in full and an exit": lambda seed: thin(
            seed, capacities={"full": 0.1875, "exit3": 0.3125}
        ),
        "worth, skipped rows learn little": lambda seed: thin(seed, labels_instead=False),
        "random, skipped rows learn little": lambda seed: thin(
            seed, router="random", labels_instead=False
        ),
        HALF_RANDOM: lambda seed: [at_random(seed, taught=rows // 2, of=rows)],
        HALF_WINDOW: lambda seed: [routed(seed, router="full", capacities={"full": 0.97}, **half)],
        MORE_RANDOM: lambda seed: [at_random(seed, taught=rows // 2, of=more)],
        MORE_WINDOW: lambda seed: [at_random(seed, taught=rows, of=more, **half)],
        MORE_LABELS: lambda seed: [],
    }


HALF_RANDOM = "random half of the rows"
HALF_WINDOW = "full in steps 4 % to 54 %"
MORE_RANDOM = "random, saved FLOPs into label rows"
MORE_WINDOW = "steps 4 % to 54 %, saved FLOPs into label rows"
MORE_LABELS = "labels only, saved FLOPs into label rows"
ROWS = {MORE_RANDOM: MORE_ROWS, MORE_WINDOW: MORE_ROWS, MORE_LABELS: LABEL_ROWS}
"""Rows a step over the other arms'."""
RIVAL = {HALF_WINDOW: HALF_RANDOM, MORE_WINDOW: MORE_RANDOM, MORE_LABELS: MORE_RANDOM,
         HALF_RANDOM: HALF_RANDOM, MORE_RANDOM: MORE_RANDOM}  # fmt: skip
"""The random rows of the same capacity and rows a step; else `random rows`."""


TUNED = (
    "The window was chosen on seed 10 and other held-out rows (nats/token): always full "
    "2.367, labels 2.434, random half 2.404, a share of rows that falls in a straight line "
    "2.398, the first half of the steps 2.388, steps 4 % to 54 % 2.385 (without the warm-up, "
    "where little is learned); with 22 rows a step and 16 of them taught in that window "
    "2.368; 32 label rows a step and no teacher 2.356: here the teacher's worth is mostly "
    "less noise in the gradient, which more rows give too."
)


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    settings = runs.settings_of(sys.argv[1:], DEFAULTS)
    known = arms(settings)
    names = settings["arms"].split(";") if settings["arms"] else list(known)
    seeds = [int(seed) for seed in settings["seeds"].split(",")]
    kept, teacher = runs.Kept("routing_table"), stories.adapted().eval()
    # seed by seed: a table that is stopped has every arm
    found: dict[str, list[Any]] = {name: [] for name in names}
    for seed in seeds:
        for name in names:
            found[name].append(measure(kept, teacher, name, known[name], settings, seed))
    if settings["out"]:
        write(settings, found, seeds)


def measure(
    kept: runs.Kept, teacher: Any, name: str, arm: Any, settings: dict[str, str], seed: int
) -> Any:
    """Held-out losses and teacher FLOPs of one arm and seed."""
    from compress.students import student_from_teacher
    from compress.teachers.local import LocalTeacher

    untaught = name in ("labels only", MORE_LABELS)
    weight = 1.0 if untaught else 1.0 - float(settings["teacher_weight"])
    numbers = {k: v for k, v in settings.items() if k not in ("seeds", "arms", "out")}

    def once() -> dict[str, Any]:
        torch.manual_seed(seed)
        callbacks = arm(seed)
        student = runs.train(
            student_from_teacher(teacher, layers=int(settings["layers"])),
            LocalTeacher(copy.deepcopy(teacher)), callbacks, stories.rows("train"),
            steps=int(settings["steps"]), batch=rows_of_step(name, settings), seed=seed,
            learning_rate=float(settings["learning_rate"]), label_weight=weight,
        )  # fmt: skip
        inner = [getattr(c, "callback", c) for c in callbacks]
        held_out = stories.rows("valid")[: int(settings["rows"])]
        return {"losses": runs.sequence_losses(student, held_out),
                "cost": inner[0].teacher_cost if inner else {"flops": 0.0, "rows": {}}}  # fmt: skip

    return kept.measured({"arm": name, "seed": seed, **numbers}, once)


def rows_of_step(name: str, settings: dict[str, str]) -> int:
    """Rows of each step of an arm."""
    return round(int(settings["batch"]) * ROWS.get(name, 1.0))


def mean_loss(found: Any) -> float:
    """Of one arm and seed."""
    return float(sum(found["losses"]) / len(found["losses"]))


def student_flops(settings: dict[str, str]) -> float:
    """Of one row's training step: a backward pass costs two forward passes."""
    from torch.utils.flop_counter import FlopCounterMode

    from compress.students import student_from_teacher

    student = student_from_teacher(stories.adapted(), layers=int(settings["layers"]))
    with (counter := FlopCounterMode(display=False)), torch.no_grad():
        student(input_ids=stories.rows("train")[:1], use_cache=False)
    return 3.0 * counter.get_total_flops()


def rival_of(name: str, losses: dict[str, list[float]]) -> str:
    """The random rows that an arm is held against."""
    rival = RIVAL.get(name, "random rows")
    return rival if rival in losses else name


def write(settings: dict[str, str], found: dict[str, list[Any]], seeds: list[int]) -> None:
    """One row an arm."""
    losses = {name: [mean_loss(one) for one in runs_] for name, runs_ in found.items()}
    always = found["always full"][0]["cost"]["flops"]
    rows, steps, learned = [], int(settings["steps"]), student_flops(settings)
    whole = always + steps * rows_of_step("always full", settings) * learned
    for name, values in losses.items():
        asked = sum(one["cost"]["flops"] for one in found[name]) / len(seeds)
        spent = asked + steps * rows_of_step(name, settings) * learned
        rows.append([
            name, f"{asked / always:.1%}", f"{spent / whole:.1%}", runs.shown(values),
            runs.difference(values, losses["always full"]),
            runs.difference(values, losses[rival_of(name, losses)]),
        ])  # fmt: skip
    runs.write(
        settings["out"],
        title="Routing the teacher by measured worth",
        question="With at most half of the teacher's FLOPs, is the student within "
        f"{MARGIN} nats/token of one that the whole teacher taught, and better than with as many "
        "random rows?",
        command="COMPRESS_TEST_DATA=... python benchmarks/routing_table.py "
        + " ".join(sys.argv[1:]),
        columns=["teacher runs for", "teacher FLOPs, share of always full",
                 "all FLOPs, share of always full", "loss (nats/token)",
                 "against always full [95 %]", "against random rows [95 %]"],
        rows=rows,
        notes=[
            f"Student: {settings['layers']} of the 5 layers of stories260k adapted to the "
            f"lower-cased stories; {settings['steps']} steps of {settings['batch']} x "
            f"{stories.LENGTH} tokens; {settings['rows']} held-out rows.",
            f"Seeds {', '.join(map(str, seeds))} decide the batches, audits and random rows; mean "
            "± standard deviation; differences paired by seed with Student's t interval.",
            f"The teacher's loss weighs {settings['teacher_weight']}, labels the rest; rows and "
            "steps without the teacher learn from labels at full weight, unless said otherwise.",
            "First tried with untaught rows at the labels' small weight alone (`learn little`): "
            "that lost to labels only, so labels_instead became the default.",
            f"Arms with the saved FLOPs in label rows take {rows_of_step(MORE_WINDOW, settings)} "
            f"rows a step ({rows_of_step(MORE_LABELS, settings)} without any teacher), and are "
            "held against random rows of the same capacity and rows a step. All FLOPs: teacher and "
            "student, whose backward pass counts as two forward passes.",
            TUNED,
            *verdicts(found, losses, always),
        ],
    )  # fmt: skip


def verdicts(
    found: dict[str, list[Any]], losses: dict[str, list[float]], always: float
) -> list[str]:
    """The goal, met or missed, arm by arm."""
    said = []
    for name, values in losses.items():
        share = sum(one["cost"]["flops"] for one in found[name]) / len(values) / always
        if name in ("always full", "labels only"):
            continue
        gap = runs.t_interval([a - b for a, b in zip(values, losses["always full"], strict=True)])
        rival = rival_of(name, losses)
        gain = runs.t_interval([a - b for a, b in zip(values, losses[rival], strict=True)])
        within = "within" if gap[0] <= MARGIN else "outside"
        sure = "better" if gain[2] < 0 else "worse" if gain[1] > 0 else "not surely different"
        cheap = "" if share <= MOST_FLOPS else f", but costs more than {MOST_FLOPS:.0%}"
        against = "" if name == rival else f"; {sure} than random rows"
        said.append(f"{name}: {within} the margin of {MARGIN}{cheap}{against}.")
    return said


if __name__ == "__main__":
    main()
