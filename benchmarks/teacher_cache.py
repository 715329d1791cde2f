"""A teacher run once and kept: bytes a token, speed against the live teacher, loss of the student.

    COMPRESS_TEST_DATA=DIR python benchmarks/teacher_cache.py
    COMPRESS_TEST_DATA=DIR python benchmarks/teacher_cache.py out=docs/results/cache.json

One JSON line an arm. Subject: a small real Llama adapted to lower-cased stories, a student of
three of its five layers, the same rows, order and steps for all. `ratio` is the seconds of a
training step over the live teacher's, the arms by turns in one process (median of `rounds`).
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import distill_runs
import stories

DEFAULTS = {
    "seeds": "0,1,2", "steps": "150", "rows": "1024", "batch": "16", "rounds": "15", "out": "",
}  # fmt: skip
ARMS: dict[str, dict[str, Any] | None] = {
    "no teacher": None, "live": {}, "cached, top 20": {"top_k": 20},
    "cached, top 50": {"top_k": 50}, "cached, 50 draws": {"draws": 50},
}  # fmt: skip
COLUMNS = ["arm", "bytes a token", "step over live", "loss", "loss minus live [95 %]"]


def main(words: list[str]) -> None:
    """Write the caches, train, time, tell."""
    from compress.teachers.local import LocalTeacher

    settings = distill_runs.settings_of(words, DEFAULTS)
    rows_RL = stories.rows("train")[: int(settings["rows"])]
    live = LocalTeacher(stories.adapted())
    with tempfile.TemporaryDirectory() as folder:
        teachers, sizes = caches(live, rows_RL, Path(folder))
        seconds = step_seconds(teachers, rows_RL, settings)
        losses = {arm: trained(teachers[arm], rows_RL, settings) for arm in ARMS}
    table = []
    for arm in ARMS:
        ratio = round(seconds[arm] / seconds["live"], 3)
        gap = distill_runs.difference(losses[arm], losses["live"]) if arm != "live" else ""
        line = [arm, sizes.get(arm), ratio, distill_runs.shown(losses[arm]), gap]
        table.append(line)
        print(json.dumps({"name": arm, "ratio": ratio, **dict(zip(COLUMNS, line, strict=True))}))
    if settings["out"]:
        write(settings, table, words)


def caches(live: Any, rows_RL: Any, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """A teacher for each arm, and the bytes a token of those that are caches."""
    from compress.teachers.cached import CachedTeacher, Identity, write_cache

    identity = Identity(teacher="stories", tokenizer="stories", data="stories")
    teachers: dict[str, Any] = {"no teacher": None, "live": live}
    sizes = {}
    for arm, kept in ARMS.items():
        if kept:
            batches = ({"input_ids": part} for part in rows_RL.split(64))
            manifest = write_cache(live, batches, folder / arm, identity=identity, **kept)
            teachers[arm] = CachedTeacher(folder / arm)
            sizes[arm] = round(manifest.bytes_per_token, 1)
    return teachers, sizes


def callbacks_of(teacher: Any) -> list[Any]:
    """Half of the loss from the teacher, where there is one."""
    from compress.callbacks import LogitsDistillation

    return [LogitsDistillation(teacher_weight=0.5)] if teacher is not None else []


def student() -> Any:
    """Three of the teacher's five layers."""
    from compress.students import student_from_teacher

    return student_from_teacher(stories.adapted(), layers=3)


def trained(teacher: Any, rows_RL: Any, settings: dict[str, str]) -> list[float]:
    """Held-out loss for each seed."""
    held_out = stories.rows("valid")[:256]
    found = []
    for seed in map(int, settings["seeds"].split(",")):
        model = distill_runs.train(
            student(), teacher, callbacks_of(teacher), rows_RL, steps=int(settings["steps"]),
            batch=int(settings["batch"]), learning_rate=2e-3, seed=seed,
            label_weight=1.0 if teacher is None else 0.5,
        )  # fmt: skip
        found.append(stories.loss_of(model, held_out))
    return found


def step_seconds(
    teachers: dict[str, Any], rows_RL: Any, settings: dict[str, str]
) -> dict[str, float]:
    """Median seconds of a training step of each arm, the arms by turns."""
    from compress.contract import Step, Want
    from compress.joint_loss import joint_loss
    from compress.models import trace_causal_lm

    model, taken = student(), {arm: list[float]() for arm in teachers}
    source = stories.batches(rows_RL, batch=int(settings["batch"]), seed=0)
    for _ in range(int(settings["rounds"])):
        batch = next(source)
        for arm, teacher in teachers.items():
            sources = callbacks_of(teacher)
            begin = time.perf_counter()
            step = Step(batch=batch, student=trace_causal_lm(model, batch), teacher=teacher,
                        want=Want(logits=True), number=0)  # fmt: skip
            joint_loss(step, sources, label_weight=0.5)[0].backward()
            taken[arm].append(time.perf_counter() - begin)
            model.zero_grad()
    return {arm: statistics.median(values[2:]) for arm, values in taken.items()}


def write(settings: dict[str, str], table: list[list[Any]], words: list[str]) -> None:
    """The results file."""
    by_arm = {line[0]: line for line in table}
    gaps = [f"{arm} {by_arm[arm][4]}" for arm in ARMS if arm != "live"]
    distill_runs.write(
        settings["out"],
        title="A cached teacher against the live one",
        question="What does keeping a teacher's answers cost in bytes and loss, and save in time?",
        command=" ".join(["COMPRESS_TEST_DATA=DIR python benchmarks/teacher_cache.py", *words]),
        columns=COLUMNS,
        rows=table,
        notes=[
            f"Loss: nats a token on 256 held-out rows, mean ± deviation of seeds "
            f"{settings['seeds']}, {settings['steps']} steps of {settings['batch']} x "
            f"{stories.LENGTH} tokens.",
            "Held-out loss minus the live teacher's, paired by seed: " + "; ".join(gaps) + ".",
            "This teacher is hardly larger than its student, so a cache saves little of a step "
            "here; what it saves grows with the teacher's size.",
            "One byte a position is the number of its entries; 2 bytes a token, 2 a probability, "
            "1 a count; vocabularies beyond 65536 take one more for the token.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
