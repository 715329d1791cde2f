"""The models behind the headline: trained once, exported once, their quality measured on the file.

All of it is kept under `headline/` in the cache (COMPRESS_CACHE), so that timing can be repeated
alone. Every training is `scripts/train.py`; what is exported passes the project's verification.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from compress.evaluate.classify import classification_accuracy
from compress.evaluate.intervals import bootstrap_interval
from compress.evaluate.models import open_model, weight_bytes
from compress.evaluate.quality import compare
from compress.export.write import export
from compress.quantize.calibration import calibrate, calibration_batches
from compress.quantize.prepare import prepare
from compress.scripts.lib import build
from compress.scripts.lib.restore import Restored, restore_student
from compress.transforms import plain_state_dict

ROOT = Path(__file__).resolve().parent.parent
RUNS = {
    "decoder": [
        "recipe=distill_qat", "student.layers=2", "trainer.max_steps=400", "target=vllm",
    ],
    "encoder": [
        "recipe=distill_encoder", "teacher.layers=6", "teacher.hidden=384",
        "teacher.max_steps=1000", "teacher.learning_rate=1e-4", "teacher.warmup_steps=100",
        "student.layers=2", "+callbacks@callbacks.pruning=pruning",
        "callbacks.pruning.ffn_density=0.125", "callbacks.pruning.round_to=64",
        "trainer.max_steps=500", "trainer.validate_every=100",
        "trainer.validation_batches=16", "target=vllm",
    ],
}  # fmt: skip
"""Model -> words of `scripts/train.py`."""
ALONE = {
    "decoder": ["~callbacks.qat", "~callbacks.logits"],
    "encoder": ["~callbacks.qat", "~callbacks.logits", "~callbacks.features"],
}
"""What a run leaves out when it trains the original on, by labels and nothing else."""
FOLDERS = {"decoder": "decoder-2-400", "encoder": "encoder-2-eighth-500"}
EXCLUDED = {"decoder": None, "encoder": "*classifier,*pooler*"}
TARGETS = {"vllm": "vllm", "onnxruntime": "tensorrt", "onnxruntime-cached": "tensorrt"}
DTYPES = {"vllm": "bfloat16", "onnxruntime": "float32", "onnxruntime-cached": "float32"}


def cache() -> Path:
    """Where runs and exports are kept."""
    return build.cache_folder() / "headline"


def made(name: str, engine: str, *, batches: int) -> dict[str, Any]:
    """Export of one model for one engine: paths, bytes, quality; made where it is missing."""
    folder = cache() / "exports" / f"{FOLDERS[name]}-{engine}"
    facts = folder / "headline.json"
    if not facts.exists():
        restored = trained(name)
        original = build.teacher_folder(
            restored.config, restored.data, metrics=cache() / "teacher.jsonl"
        )
        assert original is not None
        student = restored.student if engine == "vllm" else static_twin(restored, name)
        cached = {"cache": True} if engine.endswith("-cached") else {}
        result = export(
            student, target=TARGETS[engine], path=folder, dtype=DTYPES[engine], **cached
        )
        found = {
            "original": str(original), "verified": result.verified,
            "max_abs_logit_diff": result.verification.max_abs_logit_diff,
            "quality": quality(restored, folder, original, batches=batches, further=further(name)),
        }  # fmt: skip
        facts.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(facts.read_text())
    sizes = {"bytes": weight_bytes(folder), "original_bytes": weight_bytes(Path(found["original"]))}
    return {**found, **sizes, "path": str(folder)}


def trained(name: str) -> Restored:
    """The trained student."""
    return run(cache() / FOLDERS[name], RUNS[name])


def further(name: str) -> torch.nn.Module:
    """The original, trained on by labels for as many steps as the student: a fairer measure."""
    kept = [w for w in RUNS[name] if not w.startswith(("student.", "+callbacks", "callbacks."))]
    words = [*kept, *ALONE[name], "student=same", "training.label_weight=1", "target=transformers"]
    return run(cache() / f"{FOLDERS[name]}-original", words).student


def run(folder: Path, words: list[str]) -> Restored:
    """What `scripts/train.py` trains; it runs where that is missing or unfinished."""
    report = folder / "report.json"
    if not report.exists() or json.loads(report.read_text())["status"] != "finished":
        words = [*words, "logger=none", "verbose=false", "seed=0", f"run_dir={folder}"]
        again = ["ckpt=last"] if (folder / "checkpoints" / "last.ckpt").exists() else []
        subprocess.run([sys.executable, "scripts/train.py", *words, *again], cwd=ROOT, check=True)
    return restore_student(folder)


def static_twin(restored: Restored, name: str) -> torch.nn.Module:
    """The trained weights for Q/DQ: one calibrated scale an input, embeddings in int8 by rows.

    It is what `activations=static embeddings=W8A16:-1` starts from; it is not trained further.
    """
    student: Any = restored.student
    static = type(student)(student.config)
    static.load_state_dict(plain_state_dict(student, transformed=False))
    prepare(
        static, scheme="W8A8", activations="static", scales="fixed", embeddings="W8A16:-1",
        exclude=EXCLUDED[name],
    )  # fmt: skip
    calibrate(static, calibration_batches(restored.data.train, samples=64, seed=0))
    return static.eval()


def smallest(original: Path, folder: Path) -> None:
    """A model of the original's class with one layer of width 32, random weights, in `folder`."""
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(original)
    for key, value in (("hidden_size", 32), ("intermediate_size", 64), ("num_hidden_layers", 1),
                       ("num_attention_heads", 1), ("num_key_value_heads", 1),
                       ("head_dim", 32)):  # fmt: skip
        if hasattr(config, key):
            setattr(config, key, value)
    model: Any = getattr(transformers, config.architectures[0])(config)
    model.save_pretrained(folder)


def quality(
    restored: Restored, folder: Path, original: Path, *, batches: int, further: torch.nn.Module
) -> dict[str, Any]:
    """What the exported file keeps of the original's quality, on the validation part.

    `kept` is against the original as it was given, `kept_of_further` against the original trained
    on for as many steps as the student was: shares with their intervals.
    """
    ours, theirs = (open_model(path).module for path in (folder, original))
    loader = torch.utils.data.DataLoader(restored.data.validation, batch_size=16)
    rows = [batch for batch, _ in zip(loader, range(batches), strict=False)]
    measure = accuracies if restored.config.task == "classification" else losses
    given, on = (measure(ours, other, rows) for other in (theirs, further.eval()))
    return {
        "metric": given["metric"], "model": given["model"], "original": given["other"],
        "original_further": on["other"], "rows": len(rows) * 16, "kept": given["kept"],
        "kept_of_further": on["kept"],
    }  # fmt: skip


def accuracies(ours: torch.nn.Module, other: torch.nn.Module, rows: list[Any]) -> dict[str, Any]:
    """Accuracy of both, and ours over the other's."""
    found = [classification_accuracy(model, rows) for model in (ours, other)]
    kept = bootstrap_interval(found[0].correct, found[1].correct, statistic="ratio")
    values = dict(zip(("model", "other"), (one.accuracy for one in found), strict=True))
    return {"metric": "accuracy", **values, "kept": vars(kept)}


def losses(ours: torch.nn.Module, other: torch.nn.Module, rows: list[Any]) -> dict[str, Any]:
    """Loss of both, and the other's perplexity over ours."""
    both = compare(ours, other, rows)
    kept = bootstrap_interval(
        both.model.sequence_losses, both.baseline.sequence_losses,
        weights=both.model.sequence_tokens, statistic="exp_difference",
    )  # fmt: skip
    return {"metric": "loss", "model": both.model.loss, "other": both.baseline.loss,
            "kept": vars(kept)}  # fmt: skip
