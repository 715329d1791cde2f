"""Peak memory per rank of a student in training: whole on each rank (DDP), or in shards (FSDP2).

    python benchmarks/student_memory.py
    python benchmarks/student_memory.py layers=8 ranks=1,2 out=docs/results/student_memory.json

One JSON line an arm, and all of them as a table in `out`; every rank of every arm is a fresh
process on the CPU. A random Llama learns under W8A8 for `steps` optimizer steps of 1 x 64 tokens.
All is anonymous memory above what the rank held before the student was built. `steps_mb` is the
largest rank's peak from the third step on: weights, gradients, AdamW's moments, activations.
`run_mb` is its peak over all of the run: the student is whole on each rank while it is built and
calibrated, and again at the end. `ratio` is `steps_mb` over `ddp_1_rank`'s.
"""

import json
import os
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.teacher_memory import MEGABYTE, Peak, processor

DEFAULTS = {
    "layers": "8", "hidden": "512", "vocab": "2048", "ranks": "1,2", "steps": "6", "out": "",
}  # fmt: skip
COLUMNS = ("name", "steps_mb", "run_mb", "parameters_mb", "share", "ratio", "steps_mb_per_rank")
FIRST = 2
"""Optimizer steps before the steady state: Adam's moments are made in the first."""


def main(arguments: list[str]) -> None:
    """Measure every arm, or be one rank of one (`arm=`)."""
    settings = {**DEFAULTS, **dict(argument.split("=", 1) for argument in arguments)}
    unknown = settings.keys() - DEFAULTS.keys() - {"arm", "over"}
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; use {', '.join(DEFAULTS)}")
    if "arm" in settings:
        measure(settings)
        return
    lines: list[dict[str, Any]] = []
    for ranks in map(int, settings["ranks"].split(",")):
        for arm in ("ddp", "fsdp2"):
            found = in_fresh_processes(arm, ranks, settings)
            lines.append(as_line(arm, ranks, found, whole=lines))
            print(json.dumps(lines[-1]), flush=True)
    if settings["out"]:
        write_table(Path(settings["out"]), lines, arguments)


def as_line(
    arm: str, ranks: int, found: list[dict[str, float]], *, whole: list[dict[str, Any]]
) -> dict[str, Any]:
    """What is said of one arm; the first line of `whole` is what it is compared with."""
    steps, held = max(one["steps"] for one in found), found[0]["parameters"]
    return {
        "name": f"{arm}_{ranks}_rank{'s' * (ranks > 1)}",
        "ratio": round(steps / whole[0]["steps_mb"], 3) if whole else 1.0,
        "steps_mb": round(steps, 1),
        "run_mb": round(max(one["run"] for one in found), 1),
        "steps_mb_per_rank": [round(one["steps"], 1) for one in found],
        "parameters_mb": round(held, 1),
        "share": round(steps / held, 3),
        "machine": f"{processor()}, {os.cpu_count()} cores",
    }


def write_table(path: Path, lines: list[dict[str, Any]], arguments: list[str]) -> None:
    """The arms as one table of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = [
        f"{line['name']}: {line['steps_mb']} MB a rank while it steps, {line['share']} times the "
        f"parameters' {line['parameters_mb']} MB in float32"
        for line in lines
    ]
    table = {
        "title": "Memory of a student in training, per rank",
        "question": "What does a rank hold under trainer=fsdp2, beside trainer=ddp?",
        "command": shlex.join(["python", "benchmarks/student_memory.py", *arguments]),
        "machine": lines[0]["machine"],
        "date": date.today().isoformat(),
        "columns": list(COLUMNS),
        "rows": [[line[column] for column in COLUMNS] for line in lines],
        "notes": notes,
    }
    path.write_text(json.dumps(table, indent=1) + "\n")


def in_fresh_processes(arm: str, ranks: int, settings: dict[str, str]) -> list[dict[str, float]]:
    """What each rank measured, by rank."""
    words = [f"{key}={settings[key]}" for key in ("layers", "hidden", "vocab", "steps")]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={ranks}", __file__, f"arm={arm}", f"over={ranks}", *words,
    ]  # fmt: skip
    # freed pages go back at once: what is measured is what is held
    environment = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "0", **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("peak ")]
    if done.returncode or len(lines) != ranks:
        raise SystemExit(f"arm {arm} on {ranks} ranks failed:\n{done.stderr[-3000:]}")
    return [json.loads(line.split(maxsplit=2)[2]) for line in sorted(lines)]


def measure(settings: dict[str, str]) -> None:
    """Train one student in this rank, print its peaks."""
    import lightning as L
    import torch
    from omegaconf import OmegaConf
    from transformers import LlamaConfig, LlamaForCausalLM

    from compress.callbacks import QuantizationAwareTraining
    from compress.scripts.lib import trainer
    from compress.scripts.lib.config import recipes_folder

    hidden, vocab = int(settings["hidden"]), int(settings["vocab"])
    recipes = recipes_folder()
    asked = OmegaConf.load(recipes / "trainer" / "ddp.yaml")
    steps = int(settings["steps"])
    asked.update({
        "strategy": settings["arm"], "devices": int(settings["over"]), "max_steps": steps,
        "batch_size": 1, "validate_every": steps, "validation_batches": 1, "precision": "32-true",
    })  # fmt: skip
    rows = [{"input_ids": torch.arange(64) + n, "labels": torch.arange(64) + n} for n in range(64)]
    steady = Peak()

    class Steady(L.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == FIRST:
                steady.__enter__()
            elif trainer.global_step == steps:
                steady.__exit__()

    with Peak() as run:
        student = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab, hidden_size=hidden, intermediate_size=hidden * 11 // 4,
                num_hidden_layers=int(settings["layers"]), num_attention_heads=8,
                num_key_value_heads=8, tie_word_embeddings=False,
            )
        )  # fmt: skip
        parameters = sum(p.numel() for p in student.parameters())
        trainer.train(
            student=student, teacher=None, data=SimpleNamespace(train=rows, validation=rows),
            trainer=asked, training=OmegaConf.load(recipes / "training" / "default.yaml"),
            callbacks=[QuantizationAwareTraining(), Steady()], loggers=[], seed=0, verbose=False,
        )  # fmt: skip
    found = {
        # from the start of the run on, so that what was held when the steps began counts too
        "steps": (steady._highest - run._base) / MEGABYTE,
        "run": run.megabytes, "parameters": parameters * 4 / MEGABYTE,
    }  # fmt: skip
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    # one write, so that two ranks' lines never mix
    os.write(1, f"\npeak {rank} {json.dumps(found)}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
