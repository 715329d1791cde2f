"""Loss against density for each way of growth, on a small real Llama; and 2:4 + W8A8 + teacher.

    COMPRESS_TEST_DATA=DIR python benchmarks/sparsity_table.py out=docs/results/NAME.json

Dense model, teacher and starting point are `stories.adapted()`; with `subject=embedded` the dense
student of the default recipe (three of its teacher's six layers), trained by labels alone. All
arms train equally long, with equal data and learning rate, the dense one too. Finished arms are
kept in the cache, so that a stopped run goes on; several processes may share the work by `seeds=`.
`"only=SET;RigL"` takes some rows alone.
"""

import copy
import json
import math
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import stories

DEFAULTS = {"seeds": "0,1,2", "steps": "300", "batch": "8", "learning_rate": "1e-3",
            "densities": "0.5,0.3,0.2,0.1,0.05", "rows": "256", "only": "", "out": "",
            "subject": "stories260k"}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "static magnitude": {"growth": "none"},
    "SET": {"growth": "random", "share": 0.1, "every": 0.1},
    "RigL": {"growth": "gradient", "share": 0.1, "every": 0.1},
    "SR-STE": {"growth": "magnitude", "decay": 2e-4},
    "SR-STE, decay 5": {"growth": "magnitude", "decay": 5.0},
    "gradual magnitude": {"growth": "magnitude", "schedule": "cubic", "stop": 0.5, "decay": 2e-4},
}
TWO_IN_FOUR = "2:4 + W8A8 + distillation"
GOAL = 0.984
SHORT = (
    "A short look: few steps, one seed or some rows alone. It shows how much is lost early, not "
    "which way is best after a whole training: that takes the defaults (300 steps, three seeds)."
)


@dataclass(frozen=True)
class Subject:
    """What is made sparse, and its token rows."""

    dense: Any
    train_rows_RL: torch.Tensor
    held_out_RL: torch.Tensor
    key: Any
    said: str


def stories260k() -> Subject:
    """The real Llama."""
    said = (
        f"Subject, start and teacher: stories260k after {stories.ADAPT['steps']} steps on "
        "lower-cased stories."
    )
    return Subject(
        stories.adapted(), stories.rows("train"), stories.rows("valid"), stories.ADAPT, said
    )


def embedded() -> Subject:
    """The dense student of the default recipe, before training; its teacher from the cache."""
    from compress.checkpoint_student import student_from_checkpoint
    from compress.scripts.lib.build import build_data, cache_folder, teacher_folder
    from compress.scripts.lib.config import compose

    config = compose(["recipe=distill_qat"])
    data = build_data(config, None)
    folder = teacher_folder(config, data, metrics=cache_folder() / "teacher.jsonl")
    assert folder is not None, "the recipe has a teacher"
    student = student_from_checkpoint(folder, layers=config.student.layers)
    train, held_out = (
        torch.stack([torch.as_tensor(row["input_ids"]) for row in part])
        for part in (data.train, data.validation)
    )
    said = (
        f"Subject and start: {config.student.layers} of the {config.teacher.layers} layers of the "
        f"embedded default's teacher, trained by labels alone on rows of {train.shape[1]} tokens."
    )
    return Subject(student, train, held_out, folder.name, said)


SUBJECTS = {"stories260k": stories260k, "embedded": embedded}


class Table:
    """Measures arms, each once: what is known is read from the cache."""

    def __init__(self, words: dict[str, str]) -> None:
        self.words = words
        self.steps, self.batch = int(words["steps"]), int(words["batch"])
        self.rate = float(words["learning_rate"])
        self.subject = SUBJECTS[words["subject"]]()
        self.dense, self.train_rows = self.subject.dense.eval(), self.subject.train_rows_RL
        self.rows = self.subject.held_out_RL[: int(words["rows"])]
        self.kept = stories.cache_folder() / "sparsity_table.jsonl"

    def loss(self, arm: dict[str, Any], seed: int) -> float:
        """The loss of an arm, from the cache where it is known."""
        key = json.dumps({**arm, "seed": seed, "steps": self.steps, "batch": self.batch,
                          "rate": self.rate, "rows": self.words["rows"],
                          "subject": self.subject.key}, sort_keys=True)  # fmt: skip
        lines = self.kept.read_text().splitlines() if self.kept.exists() else []
        known = {line["key"]: line["loss"] for line in map(json.loads, lines)}
        if key not in known:
            begin = time.perf_counter()
            known[key] = stories.loss_of(self.trained(arm, seed), self.rows)
            with self.kept.open("a") as stream:
                stream.write(json.dumps({"key": key, "loss": known[key]}) + "\n")
            seconds = round(time.perf_counter() - begin, 1)
            print(json.dumps({**arm, "seed": seed, "loss": known[key], "s": seconds}), flush=True)
        return float(known[key])

    def trained(self, arm: dict[str, Any], seed: int) -> Any:
        """A copy of the dense model after training under masks (and quantisers, and a teacher)."""
        from compress.sparsify.dynamics import SparseLayers
        from compress.sparsify.settings import SparsitySettings
        from compress.targets import choose_layers

        model, sparse = copy.deepcopy(self.dense), None
        if arm["way"] != "dense":
            told = {"stop": 0.75, "every": 0.05, **arm.get("settings", {})}
            settings = SparsitySettings(**told, seed=seed).over(self.steps)
            sparse = SparseLayers(choose_layers(model), settings)
        if arm["way"] == TWO_IN_FOUR:
            from compress.quantize import prepare

            prepare(model, scheme="W8A8")
        return self.train(model, sparse, seed=seed, label_weight=arm.get("label_weight", 1.0))

    def train(self, model: Any, sparse: Any, *, seed: int, label_weight: float) -> Any:
        """The loop of a `DynamicSparsity` run, without a trainer."""
        from compress.contract import Step, Want
        from compress.distill.build import LogitSettings, teacher_term
        from compress.distill.chunked import head_losses
        from compress.distill.terms import LabelLoss
        from compress.models import trace_causal_lm
        from compress.module import parameter_groups
        from compress.schedule import warmup_cosine
        from compress.teachers.local import LocalTeacher

        distil = label_weight < 1.0
        teacher = LocalTeacher(copy.deepcopy(self.dense)) if distil else None
        told = LogitSettings(teacher_weight=1.0 - label_weight)
        groups = list(parameter_groups(model, self.rate, 0.0))
        adam = torch.optim.AdamW(groups, lr=self.rate, betas=(0.9, 0.95), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            adam, lambda step: warmup_cosine(step, warmup=20, total=self.steps)
        )
        source = stories.batches(self.train_rows, batch=self.batch, seed=seed)
        model.train()
        for number in range(1, self.steps + 1):
            data = next(source)
            step = Step(batch=data, student=trace_causal_lm(model, data), teacher=teacher,
                        want=Want(logits=True), number=number)  # fmt: skip
            named: dict[str, Any] = {"labels": LabelLoss(weight=label_weight)}
            if distil:
                named["logits"] = teacher_term(step, told)
            head_losses(step, named)[0].backward()
            taken = sparse.take_dense_gradients(number) if sparse else {}
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if sparse:
                sparse.pull_unused()
            adam.step()
            schedule.step()
            adam.zero_grad()
            if sparse:
                sparse.advance(number, gradients=taken, optimizers=[adam])
        return model


def arms_of(words: dict[str, str]) -> list[tuple[str, float, dict[str, Any]]]:
    """(way, density, arm) of every row; the 2:4 rows for the real Llama alone."""
    densities = [float(density) for density in words["densities"].split(",")]
    arms = [
        (way, density, {"way": way, "settings": {**settings, "density": density}})
        for density in densities
        for way, settings in WAYS.items()
    ]
    if words["subject"] != "stories260k":
        return arms
    stands = {"growth": "none", "pattern": "2:4"}
    srste = {"growth": "magnitude", "decay": 2e-4, "pattern": "2:4"}
    strong = {**srste, "decay": 5.0}
    rigl = {**WAYS["RigL"], "pattern": "2:4"}
    arms += [
        ("2:4 static magnitude", 0.5, {"way": "2:4", "settings": stands}),
        ("2:4 SR-STE", 0.5, {"way": "2:4", "settings": srste}),
        ("2:4 SR-STE, decay 5", 0.5, {"way": "2:4", "settings": strong}),
        ("2:4 RigL", 0.5, {"way": "2:4", "settings": rigl}),
        (TWO_IN_FOUR, 0.5, {"way": TWO_IN_FOUR, "settings": stands, "label_weight": 0.5}),
    ]  # fmt: skip
    return arms


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    words = {**DEFAULTS, **dict(word.split("=", 1) for word in sys.argv[1:])}
    if unknown := words.keys() - DEFAULTS.keys():
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(DEFAULTS)}")
    if words["subject"] not in SUBJECTS:
        sys.exit(f"subject={words['subject']} is unknown; there are {', '.join(SUBJECTS)}")
    table, seeds = Table(words), [int(s) for s in words["seeds"].split(",")]
    dense = [table.loss({"way": "dense"}, seed) for seed in seeds]
    rows: list[list[Any]] = [["dense, trained alike", 1.0, *spread(dense), 1.0]]
    only = [word for word in words["only"].split(";") if word]
    for way, density, arm in arms_of(words):
        if only and way not in only:
            continue
        losses = [table.loss(arm, seed) for seed in seeds]
        kept = statistics.fmean(math.exp(d - x) for d, x in zip(dense, losses, strict=True))
        rows.append([way, density, *spread(losses), round(kept, 4)])
        print(json.dumps(rows[-1]), flush=True)
    if words["out"]:
        write(Path(words["out"]), rows, table)


def spread(losses: list[float]) -> list[Any]:
    """Mean and standard deviation over seeds; no deviation of one."""
    deviation = round(statistics.stdev(losses), 4) if len(losses) > 1 else ""
    return [round(statistics.fmean(losses), 4), deviation]


def verdicts(rows: list[list[Any]]) -> list[str]:
    """Which ways beat static masks at each density, and whether the 2:4 goal is met."""
    by = {(row[0], row[1]): row for row in rows}
    said = []
    for density in dict.fromkeys(d for way, d in by if way == "static magnitude"):
        static = by["static magnitude", density]
        there = [w for w in WAYS if w != static[0] and (w, density) in by]
        better = [w for w in there if by[w, density][2] < static[2]]
        said.append(
            f"{1 - density:.0%} zeros: {', '.join(better) or 'none'} below static magnitude "
            f"({static[2]:.4f}); not: "
            f"{', '.join(w for w in there if w not in better) or 'none'}."
        )
    if (TWO_IN_FOUR, 0.5) not in by:
        return said
    kept = by[TWO_IN_FOUR, 0.5][4]
    met = "met" if kept >= GOAL else "missed"
    return [
        *said,
        f"{TWO_IN_FOUR}: keeps {kept:.2%} of the dense model's quality; goal {GOAL:.1%}, {met}.",
    ]


def write(path: Path, rows: list[list[Any]], table: Table) -> None:
    """The results file."""
    facts = {
        "title": f"Dynamic sparse training: {table.words['subject']}",
        "question": "Do masks that move beat masks that stand, and what is left of the quality?",
        "command": "COMPRESS_TEST_DATA=... python benchmarks/sparsity_table.py "
        + shlex.join(sys.argv[1:]),
        "machine": f"{processor()}, {torch.get_num_threads()} thread",
        "date": time.strftime("%Y-%m-%d"),
        "columns": ["way", "density", "loss (nats/token)", "standard deviation", "kept"],
        "rows": rows,
        "notes": [
            f"{table.subject.said} Every arm, the dense one too: {table.steps} steps of "
            f"{table.batch} x {table.rows.shape[1]} tokens, AdamW at {table.rate:g}, cosine to 0; "
            "labels alone, but for 2:4 + W8A8 + distillation (half the weight on the dense start's "
            "distributions, masks that stand). Masks on all linear layers but the head, uniform "
            "over layers; updates each 5 % of the run (SET and RigL: 10 %, a tenth exchanged) "
            f"until 75 % (gradual: 50 %). Loss on {table.words['rows']} held-out rows; kept = "
            "exp(dense - loss); "
            f"mean over seeds {table.words['seeds']} of data order and random growth.",
            *([] if table.steps >= 300 and "," in table.words["seeds"] else [SHORT]),
            *verdicts(rows),
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def processor() -> str:
    """Its name."""
    with open("/proc/cpuinfo") as lines:
        named = next((x for x in lines if x.startswith("model name")), ": unknown")
    return named.partition(":")[2].strip()


if __name__ == "__main__":
    main()
