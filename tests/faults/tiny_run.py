"""A small run, from its start, teacher cache or last checkpoint to the export."""

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from compress.callbacks import DynamicSparsity, LogitsDistillation, QuantizationAwareTraining
from compress.data.loader import ResumableLoader
from compress.export.write import export
from compress.module import CompressionModule
from compress.scripts.lib.checkpoints import SafeCheckpointIO
from compress.teachers.cached import CachedTeacher, Identity, write_cache
from compress.teachers.local import LocalTeacher
from tests.tiny import TinyData, tiny_llama

STEPS = 12


def run(folder: Path) -> Path:
    """Goes on where the folder stands; answers the exported folder."""
    if (folder / "export").exists():
        return folder / "export"
    teacher = CachedTeacher(cache(folder / "cache"))
    torch.manual_seed(0)
    module = CompressionModule(student=tiny_llama(), teacher=teacher, warmup_steps=0)
    keep = ModelCheckpoint(
        dirpath=folder, filename="last", every_n_train_steps=1, save_top_k=1,
        enable_version_counter=False, save_on_train_epoch_end=False,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", max_steps=STEPS, logger=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[SafeCheckpointIO()],
        callbacks=[
            QuantizationAwareTraining(), LogitsDistillation(),
            DynamicSparsity(growth="random", stop=9, every=2), keep,
        ],
    )  # fmt: skip
    last = folder / "last.ckpt"
    loader = ResumableLoader(TinyData(), batch_size=4, seed=0)
    trainer.fit(module, loader, ckpt_path=str(last) if last.exists() else None)
    export(module.student, target="transformers", path=folder / "export", dtype="float32")
    return folder / "export"


def cache(path: Path) -> Path:
    """The teacher's answers to every row, in many small shards; gone on with where it stands."""
    data = TinyData()
    rows = (torch.utils.data.default_collate([data[i]]) for i in range(len(data)))
    write_cache(
        LocalTeacher(tiny_llama(layers=3, seed=1)), rows, path, rows_per_shard=2,
        identity=Identity(teacher="tiny", tokenizer="", data="counting"),
    )  # fmt: skip
    return path


if __name__ == "__main__":
    print("ready", flush=True)
    run(Path(sys.argv[1]))
