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
ORIGINALS = {
    "decoder": [
        "recipe=distill_qat", "~callbacks.qat", "~callbacks.logits", "trainer.max_steps=400",
        "student=same", "training.label_weight=1", "target=transformers",
    ],
}  # fmt: skip
"""Model -> words of `scripts/train.py` for what is compressed, where that is trained on."""
RUNS = {
    "decoder": [
        "recipe=distill_qat", "teacher=hf", "student.layers=2", "trainer.max_steps=2000",
        "trainer.checkpoint_every=200", "trainer.validate_every=200", "target=vllm",
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
"""Model -> words for its student."""
FOLDERS = {"decoder": "decoder-2-2000", "encoder": "encoder-2-eighth-500"}
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
            "quality": quality(restored, folder, original, batches=batches),
        }  # fmt: skip
        facts.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(facts.read_text())
    sizes = {"bytes": weight_bytes(folder), "original_bytes": weight_bytes(Path(found["original"]))}
    return {**found, **sizes, "path": str(folder)}


def trained(name: str) -> Restored:
    """The trained student."""
    folder = cache() / FOLDERS[name]
    run(folder, words_of(name))
    return restore_student(folder)


def words_of(name: str) -> list[str]:
    """What `scripts/train.py` is told; an original of its own is trained where it is missing."""
    if name not in ORIGINALS:
        return RUNS[name]
    folder = cache() / f"{name}-original"
    run(folder, ORIGINALS[name])
    return [*RUNS[name], f"teacher.path={folder / 'export' / 'transformers'}"]


def run(folder: Path, words: list[str]) -> None:
    """Runs `scripts/train.py` where its run is missing or unfinished."""
    report = folder / "report.json"
    if not report.exists() or json.loads(report.read_text())["status"] != "finished":
        words = [*words, "logger=none", "verbose=false", "seed=0", f"run_dir={folder}"]
        again = ["ckpt=last"] if (folder / "checkpoints" / "last.ckpt").exists() else []
        subprocess.run([sys.executable, "scripts/train.py", *words, *again], cwd=ROOT, check=True)


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


def quality(restored: Restored, export_folder: Path, original: Path, *, batches: int) -> Any:
    """Share of quality kept by the exported file, on the validation part, with its interval."""
    models = [open_model(path).module for path in (export_folder, original)]
    loader = torch.utils.data.DataLoader(restored.data.validation, batch_size=16)
    rows = [batch for batch, _ in zip(loader, range(batches), strict=False)]
    if restored.config.task == "classification":
        ours, theirs = (classification_accuracy(model, rows) for model in models)
        kept = bootstrap_interval(ours.correct, theirs.correct, statistic="ratio")
        said = {"metric": "accuracy", "model": ours.accuracy, "original": theirs.accuracy}
    else:
        both = compare(*models, rows)
        kept = bootstrap_interval(
            both.model.sequence_losses, both.baseline.sequence_losses,
            weights=both.model.sequence_tokens, statistic="exp_difference",
        )  # fmt: skip
        said = {"metric": "loss", "model": both.model.loss, "original": both.baseline.loss}
    return {**said, "rows": len(rows) * 16, "kept": vars(kept)}
