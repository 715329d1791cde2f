"""An encoder classifier halved in depth and quantised: before, after, and what each part adds.

    python benchmarks/encoder_table.py seeds=0,1,2 out=docs/results/encoder.json

Every row is a run of `recipe=distill_encoder` and its own report: nothing is computed here but
means. Runs that are finished under `runs/encoder_table` are not made again.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import distill_runs as runs

ROOT = Path(__file__).resolve().parent.parent
ARMS = {
    "labels, dense": ["~callbacks.qat", "~callbacks.features", "~callbacks.logits"],
    "labels, W8A8": ["~callbacks.features", "~callbacks.logits"],
    "logits, W8A8": ["~callbacks.features"],
    "features + logits, W8A8": [],
}
DEFAULTS = {"seeds": "0,1,2", "steps": "200", "teacher_steps": "400", "out": ""}


def report_of(name: str, seed: int, settings: dict[str, str]) -> dict[str, Any]:
    """The report of one run, made where it is missing."""
    word = name.replace(", ", "-").replace(" + ", "+").replace(" ", "")
    folder = ROOT / "runs" / "encoder_table" / f"{word}-{seed}-{settings['steps']}"
    path = folder / "report.json"
    if not path.exists() or json.loads(path.read_text())["status"] != "finished":
        alone = ["training.label_weight=1"] if name.startswith("labels") else []
        words = [
            "recipe=distill_encoder", "logger=none", "verbose=false", f"seed={seed}",
            f"trainer.max_steps={settings['steps']}", f"run_dir={folder}", *ARMS[name], *alone,
            f"teacher.max_steps={settings['teacher_steps']}",
        ]  # fmt: skip
        subprocess.run([sys.executable, "scripts/train.py", *words], cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads(path.read_text())
    print(json.dumps({"arm": name, "seed": seed, **found["quality"]}), flush=True)
    return found


def main() -> None:
    """Run what is missing, print, write."""
    settings = runs.settings_of(sys.argv[1:], DEFAULTS)
    seeds = [int(seed) for seed in settings["seeds"].split(",")]
    found: dict[str, list[Any]] = {name: [] for name in ARMS}
    for seed in seeds:
        for name in ARMS:
            found[name].append(report_of(name, seed, settings))
    first = found["features + logits, W8A8"][0]
    size, teacher_accuracy = first["size"], first["quality"]["accuracy"]["teacher"]
    rows = [["teacher, 4 layers, dense", f"{first['quality']['teacher']:.4f}",
             f"{teacher_accuracy:.2%}", size["teacher_bytes"], ""]]  # fmt: skip
    for name, reports in found.items():
        export = reports[0]["exports"][0]
        accuracies = [r["quality"]["accuracy"]["compressed"] for r in reports]
        rows.append([
            f"student, 2 layers: {name}", runs.shown([r["quality"]["compressed"] for r in reports]),
            f"{statistics.mean(accuracies):.2%}", export["bytes"], export["max_abs_logit_diff"],
        ])  # fmt: skip
    if settings["out"]:
        write(settings, rows, seeds, first)


def write(settings: dict[str, str], rows: Any, seeds: list[int], first: dict[str, Any]) -> None:
    """The results file."""
    runs.write(
        settings["out"],
        title="An encoder classifier, half as deep and in int8",
        question="What do features, class probabilities and W8A8 do to a BERT classifier?",
        command="python benchmarks/encoder_table.py " + " ".join(sys.argv[1:]),
        columns=["model", "loss (nats/example)", "accuracy", "bytes of weights",
                 "largest logit difference after reloading"],
        rows=rows,
        notes=[
            "Task: from which of eight packages of the standard library does a piece of 12 lines "
            "come? Files are split, not pieces.",
            f"Teacher: a BERT of 4 layers, width 128, {settings['teacher_steps']} steps; students "
            f"start from two of its layers, {settings['steps']} steps each.",
            f"Seeds {', '.join(map(str, seeds))}: mean ± standard deviation.",
            f"Verified by reloading through transformers: {first['exports'][0]['verified']}.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
