"""Run folders as a training leaves them; every number in here is synthetic and made for tests."""

import json
import math
import random
from pathlib import Path
from typing import Any

LAYERS = [
    f"model.layers.{layer}.{part}"
    for layer in range(3)
    for part in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )
]  # fmt: skip


def synthetic_report(**changes: Any) -> dict[str, Any]:
    """A finished run with every part of the schema."""
    dense, ptq, compressed = 3.412, 3.468, 3.421
    report = {
        "schema": 1,
        "recipe": "distill_qat",
        "status": "finished",
        "command": "python scripts/train.py recipe=distill_qat compare=true seed=0",
        "environment": {"python": "3.11.2", "torch": "2.13.0", "machine": "synthetic, 2 threads"},
        "asked": {
            "seed": 0, "target": "vllm", "compare": True,
            "teacher": {"kind": "embedded", "layers": 6, "hidden": 256, "path": None},
            "student": {"kind": "from_teacher", "layers": 3},
            "trainer": {"max_steps": 300, "batch_size": 16, "precision": "bf16-mixed"},
            "training": {"learning_rate": 1e-3, "label_weight": 0.5},
            "callbacks": {
                "qat": {"_target_": "compress.callbacks.QAT", "scheme": "W8A8", "exclude": ["lm_head"]},  # noqa: E501
                "logits": {"_target_": "compress.callbacks.Logits", "temperature": 2.0, "weight": 0.5},  # noqa: E501
            },
        },
        "seconds": {"data": 21.5, "teacher": 241.0, "train": 96.2, "export": 4.1},
        "quality": {
            "metric": "loss", "unit": "nats/token", "teacher": 3.377, "start": 3.814,
            "start_ptq": 3.902, "compressed": compressed,
            "compare": {
                "dense": dense, "ptq": ptq, "no_teacher": 3.447,
                "kept": math.exp(dense - compressed),
                "recovered": (ptq - compressed) / (ptq - dense),
            },
        },
        "size": {"teacher_bytes": 21_233_664, "dense_bytes": 12_714_000,
                 "compressed_bytes": 4_811_512, "ratio": 21_233_664 / 4_811_512},
        "sparsity": {"target_density": 0.5, "density": 0.5003},
        "teacher_cost": {"flops": 3.1e14, "flops_if_always_full": 8.9e14},
        "routing": {"paths": {"full": 0.21, "features": 0.34, "skip": 0.45}, "capacity": 8},
        "calibration": {"batches": 8, "method": "mse"},
        "layers": [
            {"name": name, "bits": 4 if "mlp" in name else 8, "density": 0.4 + 0.03 * (i % 7),
             "error": 0.004 * (1 + i % 5), "inputs": True, "shape": [256, 256]}
            for i, name in enumerate(LAYERS)
        ],
        "exports": [{"target": "vllm", "scheme": "W8A8", "path": "export/vllm", "verified": True,
                     "max_abs_logit_diff": 0.0, "codes_equal": True, "bytes": 4_811_512}],
        "speed": [{"name": "plain", "ratio": 1.0}, {"name": "compressed", "ratio": 0.71}],
        "samples": [
            {"prompt": "import os\n\ndef ", "teacher": "main(argv=None):\n    if argv is None:\n",
             "dense": "_get(self):\n    return self\n", "compressed": "main(args):\n    if args:\n"},  # noqa: E501
            {"prompt": "class Stack:\n    def __init__(self", "teacher": ", items=()):\n",
             "dense": "):\n        self\n", "compressed": ", items):\n        self.items = items\n"},  # noqa: E501
        ],
        "notes": ["W8A8 is served as dynamic on this target."],
    }  # fmt: skip
    return {**report, **changes}


def write_run(
    folder: Path, report: dict[str, Any] | None = None, *, steps: int = 300, seed: int = 0
) -> Path:
    """A run folder with report.json and metrics.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(synthetic_report() if report is None else report)
    (folder / "report.json").write_text(text, encoding="utf-8")
    lines = [json.dumps(line) for line in synthetic_metrics(steps=steps, seed=seed)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def synthetic_metrics(*, steps: int, seed: int) -> list[dict[str, Any]]:
    """Falling curves with noise for the teacher, the student and two arms of a comparison."""
    noise = random.Random(seed)
    lines: list[dict[str, Any]] = []
    for phase, floor in (("teacher", 3.3), ("train", 3.38), ("dense", 3.4), ("no_teacher", 3.43)):
        for step in range(0, steps, 5):
            labels = floor + 1.5 * math.exp(-step / 60) + noise.gauss(0, 0.04)
            line = {
                "step": step,
                "phase": phase,
                "train/labels": labels,
                "lr": 1e-3 * (1 - step / steps),
            }
            if phase == "train":
                line["train/logits"] = 0.2 + 0.6 * math.exp(-step / 50) + noise.gauss(0, 0.01)
                line["train/loss"] = labels + line["train/logits"]
            lines.append(line)
        for step in range(99, steps, 100):
            value = floor + 1.5 * math.exp(-step / 60) + 0.05
            lines.append({"step": step, "phase": phase, "val/loss": value})
    return lines
