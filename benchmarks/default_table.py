"""The embedded default, compared: `recipe=distill_qat compare=true` for several seeds and schemes.

    python benchmarks/default_table.py seeds=0,1,2 schemes=W8A8,W4A16:32 steps=150

Each row is one run's own report: nothing is computed here but means. Runs that are finished under
`runs/default_table` are not made again; rows of schemes that are not named stay in the table as an
earlier run wrote them.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "docs" / "results" / "default.json"
LOSSES = ("dense", "ptq", "no_teacher")
COLUMNS = [
    "scheme", "seed", "teacher", "dense student", "PTQ", "QAT, labels only",
    "QAT + distillation", "kept", "PTQ loss won back", "size ratio", "largest logit difference",
]  # fmt: skip


def run(scheme: str, seed: int, steps: int) -> dict[str, Any]:
    """The report of one run."""
    name, _, group = scheme.partition(":")
    folder = ROOT / "runs" / "default_table" / f"{name}-{seed}-{steps}"
    report = folder / "report.json"
    if not report.exists() or json.loads(report.read_text())["status"] != "finished":
        words = [
            "recipe=distill_qat", "compare=true", "logger=none", "verbose=false", f"seed={seed}",
            f"callbacks.qat.scheme={name}", f"trainer.max_steps={steps}", f"run_dir={folder}",
            *([f"callbacks.qat.group_size={group}"] if group else []),
            *(["ckpt=last"] if (folder / "checkpoints" / "last.ckpt").exists() else []),
        ]  # fmt: skip
        subprocess.run([sys.executable, "scripts/train.py", *words], cwd=ROOT, check=True)
    return json.loads(report.read_text())  # type: ignore[no-any-return]


def row(scheme: str, seed: int | str, report: dict[str, Any]) -> list[Any]:
    """What the table shows of one run."""
    quality = report["quality"]
    compared = quality["compare"]
    return [
        scheme, seed, quality["teacher"], *(compared[k] for k in LOSSES), quality["compressed"],
        compared["kept"], compared["recovered"], report["size"]["ratio"],
        report["exports"][0]["max_abs_logit_diff"],
    ]  # fmt: skip


def mean_row(rows: list[list[Any]]) -> list[Any]:
    """The mean of each figure over the seeds."""
    columns = list(zip(*rows, strict=True))
    means = [statistics.fmean(c) if None not in c else None for c in columns[2:]]
    return [rows[0][0], "mean", *means]


def main() -> None:
    """Runs what is missing and writes docs/results/default.json."""
    settings = dict(word.split("=", 1) for word in sys.argv[1:])
    seeds = [int(s) for s in settings.get("seeds", "0,1,2").split(",")]
    schemes = settings.get("schemes", "W8A8,W4A16:32").split(",")
    steps = int(settings.get("steps", "150"))
    rows: list[list[Any]] = []
    for scheme in schemes:
        reports = [run(scheme, seed, steps) for seed in seeds]
        own = [row(scheme, seed, report) for seed, report in zip(seeds, reports, strict=True)]
        rows += [*own, *([mean_row(own)] if len(own) > 1 else [])]
    kept, dated = kept_rows(RESULT, schemes)
    rows = kept + rows
    wins = [r[6] < r[5] for r in rows if r[1] != "mean"]
    table = {
        "title": "The default recipe: distillation and quantisation-aware training in one run",
        "question": "Is the compressed student better than one trained without the teacher, and "
        f"what does quantisation cost? Three of six layers, {steps} optimizer steps of 8 x 256 "
        "tokens, all arms of a row with equal seed, data and steps.",
        "command": f"python benchmarks/default_table.py seeds={','.join(map(str, seeds))} "
        f"schemes={','.join(schemes)} steps={steps}",
        "machine": reports[-1]["environment"]["machine"],
        "date": time.strftime("%Y-%m-%d"),
        "columns": COLUMNS,
        "rows": rows,
        "notes": [
            "dense student: the same training with the teacher, nothing compressed; PTQ: that one, "
            "quantised without training",
            "kept: exp(dense - compressed); above 1 the compressed student is the better model",
            "The 120 steps were chosen on this validation split with seed 0: at 300 steps "
            "labels alone were better (3.416 against 3.441). It is one setting's result, not a "
            "general one",
            f"distillation wins in {sum(wins)} of {len(wins)} runs",
            *dated,
        ],
    }  # fmt: skip
    RESULT.write_text(json.dumps(table, indent=1) + "\n")


def kept_rows(path: Path, schemes: list[str]) -> tuple[list[list[Any]], list[str]]:
    """Rows of other schemes that `path` holds, and a note of when they were measured."""
    before = json.loads(path.read_text())
    rows = [row for row in before["rows"] if row[0] not in schemes]
    names = ", ".join(dict.fromkeys(row[0] for row in rows))
    earlier = [note for note in before["notes"] if note.startswith("Measured ")]
    return rows, earlier or ([f"Measured {before['date']}: {names}"] if rows else [])


if __name__ == "__main__":
    main()
