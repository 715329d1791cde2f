"""The headline: latency, throughput, size and quality of what is exported, against the original.

    python benchmarks/headline.py run=runs/distill_qat/NAME original=TEACHER_FOLDER

Every arm is served by its engine in a process of its own; arms take turns (see
`compress.evaluate.paired`). The encoder (a BERT of MiniLM's size, 6 x 384) has random weights:
speed and size do not depend on them, and its quality is not claimed.
    engines=vllm,onnxruntime   models=decoder,encoder   requests=12   threads=1
    out=docs/results/headline.json
"""

import datetime
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# last: this folder holds a program named onnx.py, which would be taken for the package
sys.path.append(sys.path.pop(0))

import torch

from compress.errors import CompressError
from compress.evaluate.arms import Arm
from compress.evaluate.engines import EngineSettings
from compress.evaluate.intervals import bootstrap_interval
from compress.evaluate.models import open_model, weight_bytes
from compress.evaluate.paired import serve_closed, summaries
from compress.evaluate.quality import compare
from compress.evaluate.workload import draw_lengths, make_jobs
from compress.export.write import export
from compress.prune.build import prune_and_shrink
from compress.quantize.calibration import calibrate, calibration_batches
from compress.quantize.prepare import prepare
from compress.scripts.lib.facts import machine
from compress.scripts.lib.restore import restore_student
from compress.scripts.lib.run_folder import write_json
from compress.transforms import plain_state_dict

DEFAULTS = {
    "run": "", "original": "", "engines": "vllm,onnxruntime", "models": "decoder,encoder",
    "requests": "12", "threads": "1", "batches": "32", "python": ".venv-serve/bin/python",
    "out": "docs/results/headline.json",
}  # fmt: skip
GOALS = {"latency": 0.30, "throughput": 3.0, "size": 4.0, "kept": 0.98}
TARGETS = {"vllm": "vllm", "onnxruntime": "tensorrt"}
NOTES = (
    "Ratios are model over original (size the other way round), intervals over paired requests; "
    "the machine was shared, so intervals are wide.",
    "Sizes are of the files: the original is stored in fp32. Against a 16-bit copy of it the size "
    "ratio is half of that shown.",
    "Quality kept is exp(original loss - student loss); above 1 the student is better, as the "
    "embedded teacher is trained for few steps and the student goes on from its layers.",
    "A decoder of 5M parameters spends most of a token's time in the runtime, not in its weights: "
    "half the layers in int8 cannot cut 70 %. Larger models come closer to their bytes' ratio.",
    "Encoders: random weights, so speed and size alone; a BERT's embedding table is half of it and "
    "stays in fp32, which bounds the size ratio.",
)
COLUMNS = ["model", "engine", "latency ratio", "throughput ratio (batch 8)", "size ratio",
           "quality kept"]  # fmt: skip


def main(words: list[str]) -> None:
    """Measure each model in each engine, and write the table after each."""
    given = dict(word.split("=", 1) for word in words)
    if unknown := given.keys() - DEFAULTS.keys():
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(DEFAULTS)}")
    asked = {**DEFAULTS, **given}
    table = _table(words)
    with tempfile.TemporaryDirectory() as work:
        for name in asked["models"].split(","):
            students, original = _models(name, asked, Path(work))
            for engine in asked["engines"].split(","):
                try:
                    row = _measure(name, engine, *students[engine], original, asked, Path(work))
                except CompressError as error:
                    table["notes"].append(f"{name} in {engine}: {str(error).splitlines()[0]}")
                    continue
                table["rows"].append(row["cells"])
                if name == "decoder" and "headline" not in table:
                    table["headline"] = row["headline"]
                table["notes"] += row["notes"]
                write_json(Path(asked["out"]), table)
                print(row["cells"], flush=True)
    write_json(Path(asked["out"]), table)


def _table(words: list[str]) -> dict[str, Any]:
    return {
        "title": "The headline: what is served, against the original in the same engine",
        "question": "Is latency 70 % lower, throughput 3-5x, size 4x smaller, 98 % kept?",
        "command": " ".join(["python benchmarks/headline.py", *map(_without_folders, words)]),
        "machine": machine(), "date": datetime.date.today().isoformat(),
        "columns": COLUMNS, "rows": [], "notes": list(NOTES),
    }  # fmt: skip


def _without_folders(word: str) -> str:
    key, _, value = word.partition("=")
    return word if not value.startswith(("/", "~")) else f"{key}=..."


def _models(name: str, asked: dict[str, str], work: Path) -> tuple[dict[str, Any], Path]:
    """Engine -> (student with transforms, share kept); and the original's folder."""
    if name == "encoder":
        return _encoder(work)
    restored = restore_student(asked["run"])
    original = open_model(asked["original"])
    rows = torch.utils.data.DataLoader(restored.data.validation, batch_size=8)
    taken = [batch for batch, _ in zip(rows, range(int(asked["batches"])), strict=False)]
    # Q/DQ holds one scale an input: the trained weights again, their inputs calibrated
    static = type(restored.student)(restored.student.config)
    static.load_state_dict(plain_state_dict(restored.student, transformed=False))
    prepare(static, scheme="W8A8", activations="static", scales="fixed")
    calibrate(static, calibration_batches(restored.data.train, samples=64, seed=0))
    students = {"vllm": restored.student, "onnxruntime": static.eval()}
    found = {e: (m, _kept(m, original.module, taken)) for e, m in students.items()}
    return found, Path(asked["original"])


def _kept(student: Any, original: Any, batches: list[Any]) -> Any:
    both = compare(student, original, batches)
    return bootstrap_interval(
        both.model.sequence_losses, both.baseline.sequence_losses,
        weights=both.model.sequence_tokens, statistic="exp_difference",
    )  # fmt: skip


def _encoder(work: Path) -> tuple[dict[str, Any], Path]:
    """Half the layers and half the feed-forward width of a 6 x 384 BERT, in W8A8."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536, num_labels=2,
    )  # fmt: skip
    original = BertForSequenceClassification(config).eval()
    folder = work / "encoder"
    original.save_pretrained(folder)
    tokens = torch.randint(0, 30522, (4, 64))
    batch = {"input_ids": tokens, "labels": torch.zeros(4, dtype=torch.long)}
    found = {}
    for engine, activations in (("vllm", "dynamic"), ("onnxruntime", "static")):
        student = prune_and_shrink(original, [batch], layers=3, ffn_density=0.5)
        prepare(
            student, scheme="W8A8", activations=activations, scales="fixed",
            exclude="*classifier,*pooler*",
        )  # fmt: skip
        calibrate(student, [batch])
        found[engine] = (student.eval(), None)
    return found, folder


def _measure(
    name: str, engine: str, student: Any, kept: Any, original: Path, asked: dict[str, str],
    work: Path,
) -> dict[str, Any]:  # fmt: skip
    # vLLM computes in bfloat16; a BERT's embeddings are exported in fp32, as they are trained
    dtype = "bfloat16" if engine == "vllm" and name == "decoder" else "float32"
    made = export(student, target=TARGETS[engine], path=work / f"{name}-{engine}", dtype=dtype)
    paths = {"model": str(made.path), "baseline": str(original)}
    options = {"max_model_len": 256, "max_num_seqs": 8} if engine == "vllm" else {}
    chosen = EngineSettings(
        threads=int(asked["threads"]),
        dtype="bfloat16" if engine == "vllm" else None,
        options=options,
    )
    count, new = int(asked["requests"]), (0, 0) if name == "encoder" else (32, 32)
    ratios = {}
    with ExitStack() as stack:
        arms = {
            who: stack.enter_context(
                Arm(who, engine=engine, path=path, settings=chosen, python=asked["python"])
            )
            for who, path in paths.items()
        }
        vocabulary = min(int(arm.facts["vocab_size"]) for arm in arms.values())
        lengths = draw_lengths(count, prompt=(64, 128), new=new)
        for batch in (1, 8):
            jobs = make_jobs(lengths, batch=batch, vocab_size=vocabulary)
            ratios[batch] = summaries(serve_closed(arms, jobs, rounds=4))["ratios"]
        peaks = {who: arm.peak_bytes for who, arm in arms.items()}
    size = weight_bytes(original) / weight_bytes(made.path)
    return _row(name, engine, ratios, size, kept, peaks)


def _row(
    name: str, engine: str, ratios: dict[int, Any], size: float, kept: Any, peaks: dict[str, int]
) -> dict[str, Any]:
    latency, throughput = ratios[1]["latency"], ratios[8]["throughput"]
    values = {"latency": latency["value"], "throughput": throughput["value"], "size": size,
              "kept": None if kept is None else kept.value}  # fmt: skip
    missed = [
        f"{key} {value:.2f} (goal {GOALS[key]})"
        for key, value in values.items()
        if value is not None and (value > GOALS[key] if key == "latency" else value < GOALS[key])
    ]
    notes = [f"{name} in {engine}: peak memory {peaks['model'] / peaks['baseline']:.2f}x"]
    notes += [f"{name} in {engine} misses {', '.join(missed)}"] if missed else []
    cells = [name, engine, _words(latency), _words(throughput), f"{size:.2f}",
             "not measured" if kept is None else str(kept)]  # fmt: skip
    headline = {"latency_ratio": values["latency"], "throughput_ratio": values["throughput"],
                "size_ratio": size, "quality_kept": values["kept"], "engine": engine}  # fmt: skip
    return {"cells": cells, "headline": headline, "notes": notes}


def _words(ratio: dict[str, float]) -> str:
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
