"""What each signal of a teacher adds: labels, logits, + features, + routing, at equal steps.

    COMPRESS_TEST_DATA=DIR python benchmarks/distillation_table.py out=docs/results/NAME.json

Subject: `stories.adapted()` and a student of some of its layers. Every arm sees the same batches
and is measured on the same held-out rows, on which nothing was tuned. Finished arms are kept.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import distill_runs as runs
import stories

DEFAULTS = {
    "seeds": "0,1,2", "steps": "300", "batch": "16", "layers": "2", "rows": "512",
    "learning_rate": "2e-3", "train_rows": "0", "teacher_weight": "0.9", "arms": "", "out": "",
}  # fmt: skip


def arms(weight: float) -> dict[str, tuple[float, Any]]:
    """Name to (weight of the labels, callbacks)."""
    from compress.callbacks import (
        FeatureDistillation,
        LogitsDistillation,
        OnPolicyDistillation,
        RoutedDistillation,
    )

    def logits(**more: Any) -> Any:
        return LogitsDistillation(teacher_weight=weight, **more)

    def routed(**more: Any) -> Any:
        return RoutedDistillation(teacher_weight=weight, capacities={"full": 0.375}, **more)

    rest = 1.0 - weight
    return {
        "labels": (1.0, lambda: []),
        "logits": (rest, lambda: [logits()]),
        "logits, reverse KL": (rest, lambda: [logits(divergence="reverse_kl")]),
        "logits, T = 2": (rest, lambda: [logits(temperature=2.0)]),
        "logits + features (cosine)": (
            rest, lambda: [logits(), FeatureDistillation(weight=0.3, loss="cosine")],
        ),
        "logits + features (relations)": (
            rest,
            lambda: [
                logits(),
                FeatureDistillation(
                    weight=0.3, loss="relations", relation_heads=4, layer_map="last",
                    within=["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                ),
            ],
        ),
        "logits + its own texts (on-policy)": (
            rest, lambda: [logits(), OnPolicyDistillation(teacher_weight=0.1, share=0.25)],
        ),
        "routed logits (41 % of rows)": (rest, lambda: [routed()]),
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    settings = runs.settings_of(sys.argv[1:], DEFAULTS)
    weight = float(settings["teacher_weight"])
    known = arms(weight)
    names = settings["arms"].split(";") if settings["arms"] else list(known)
    seeds = [int(seed) for seed in settings["seeds"].split(",")]
    kept, teacher = runs.Kept("distillation_table"), stories.adapted().eval()
    found = {name: [measure(kept, teacher, name, known[name], settings, s) for s in seeds]
             for name in names}  # fmt: skip
    if settings["out"]:
        write(settings, teacher, found, seeds)


def measure(
    kept: runs.Kept, teacher: Any, name: str, arm: Any, settings: dict[str, str], seed: int
) -> float:
    """Mean held-out loss of one arm and seed."""
    from compress.students import student_from_teacher
    from compress.teachers.local import LocalTeacher

    label_weight, callbacks = arm
    numbers = {k: v for k, v in settings.items() if k not in ("seeds", "arms", "out")}

    def once() -> dict[str, Any]:
        torch.manual_seed(seed)
        rows = stories.rows("train")
        student = runs.train(
            student_from_teacher(teacher, layers=int(settings["layers"])),
            LocalTeacher(copy.deepcopy(teacher)), callbacks(),
            rows[: int(settings["train_rows"]) or len(rows)],
            steps=int(settings["steps"]), batch=int(settings["batch"]), seed=seed,
            learning_rate=float(settings["learning_rate"]), label_weight=label_weight,
        )  # fmt: skip
        held_out = stories.rows("valid")[: int(settings["rows"])]
        return {"losses": runs.sequence_losses(student, held_out)}

    losses = kept.measured({"arm": name, "seed": seed, **numbers}, once)["losses"]
    return sum(losses) / len(losses)


def write(settings: Any, teacher: Any, found: dict[str, list[float]], seeds: list[int]) -> None:
    """One row an arm: loss, gain over the labels, gain over the logits."""
    held_out = stories.rows("valid")[: int(settings["rows"])]
    best = runs.sequence_losses(teacher, held_out)
    base, labels = sum(best) / len(best), found["labels"]
    logits = found.get("logits", labels)
    rows: list[list[Any]] = [["teacher, 5 layers", f"{base:.4f}", "", "", ""]]
    for name, losses in found.items():
        won = [(a - b) / (a - base) for a, b in zip(labels, losses, strict=True)]
        rows.append([
            name, runs.shown(losses), runs.difference(losses, labels),
            runs.difference(losses, logits), f"{sum(won) / len(won):.1%}",
        ])  # fmt: skip
    runs.write(
        settings["out"],
        title="What each signal of a teacher adds",
        question="At equal steps, how much nearer to the teacher do logits, features and routing "
        "bring a student of some of its layers than labels alone?",
        command="COMPRESS_TEST_DATA=... python benchmarks/distillation_table.py "
        + " ".join(sys.argv[1:]),
        columns=[
            "student learns from",
            "loss (nats/token)",
            "against labels [95 %]",
            "against logits [95 %]",
            "share of the gap to the teacher closed",
        ],
        rows=rows,
        notes=[
            f"Student: {settings['layers']} of the 5 layers of stories260k adapted to the "
            f"lower-cased stories; {settings['steps']} steps of {settings['batch']} x "
            f"{stories.LENGTH} tokens of {settings['train_rows'] if settings['train_rows'] != '0' else 'all'} "  # noqa: E501
            f"training rows, AdamW at {settings['learning_rate']}, cosine to 0.",
            f"Seeds {', '.join(map(str, seeds))} decide the order of batches; mean ± standard "
            "deviation. Differences are paired by seed, with Student's t interval over seeds.",
            f"Teacher's terms weigh {settings['teacher_weight']}, labels the rest; nothing was "
            f"tuned on the {settings['rows']} held-out rows.",
            *verdicts(found),
        ],
    )


def verdicts(found: dict[str, list[float]]) -> list[str]:
    """Which differences are sure."""
    said = []
    for name, losses in found.items():
        against = "labels" if name == "logits" else "logits"
        if name == against or name == "labels" or against not in found:
            continue
        gaps = [a - b for a, b in zip(losses, found[against], strict=True)]
        mean, low, high = runs.t_interval(gaps)
        sure = "better" if high < 0 else "worse" if low > 0 else "no sure difference"
        said.append(f"{name} against {against}: {mean:+.4f} nats/token, {sure}.")
    return said


if __name__ == "__main__":
    main()
