"""The training that the soak watches, everything switched on, and what it reads of its process."""

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = 10**7
"""More than any soak takes: time ends it."""

ON = (
    "quantisation (W8A8), 2:4 sparsity, pruning (to step 300), distillation of logits (live and "
    "from a teacher cache), features, routing, on-policy, number guard (rollback, snapshot every "
    "50 steps), validation every 50 steps, metrics.jsonl, CSV, W&B offline"
)

WORDS = [
    "recipe=distill_qat", "logger=wandb", "target=null", "verbose=false",
    "data.max_bytes=600000", "data.vocab_size=512", "data.sequence_length=64",
    "trainer.batch_size=8", "trainer.validate_every=50", "trainer.validation_batches=4",
    "trainer.precision=bf16-mixed", "student.layers=2", "training.learning_rate=3e-4",
    "teacher.layers=3", "teacher.hidden=64", "teacher.max_steps=200", "teacher.dtype=float32",
]  # fmt: skip


def callbacks(cached: Any) -> list[Any]:
    """Every callback of the project; schedules go on for the whole run, pruning's ends early."""
    from compress import callbacks as ours

    return [
        ours.StructuredPruning(
            ffn_density=0.5, round_to=32, block=4, start=50, stop=300, every=50, samples=16
        ),
        ours.DynamicSparsity(pattern="2:4", density=None, growth="magnitude", stop=STEPS, every=5),
        ours.QuantizationAwareTraining(scheme="W8A8"),
        ours.LogitsDistillation(teacher_weight=0.2),
        ours.LogitsDistillation(teacher_weight=0.2, teacher=cached, name="cached"),
        ours.FeatureDistillation(weight=0.1),
        ours.RoutedDistillation(teacher_weight=0.2, capacities={"full": 0.25, "exit1": 0.25}),
        ours.OnPolicyDistillation(share=0.25, prompt_tokens=16, new_tokens=8),
        ours.NumberGuard(policy="rollback", spike_factor=20.0),
    ]


def train(
    folder: Path,
    *,
    seed: int,
    checkpoint_every: int,
    watch: Callable[[dict[str, Path]], Any],
) -> None:
    """One training by the same code as any run; the teacher's cache is made first."""
    from compress.scripts.lib import build, hosts, loggers, trainer
    from compress.scripts.lib.config import compose
    from compress.scripts.lib.run_folder import RunFolder
    from compress.teachers.cached import CachedTeacher
    from compress.teachers.local import LocalTeacher

    config = compose([
        *WORDS, f"trainer.checkpoint_every={checkpoint_every}", f"trainer.max_steps={STEPS}",
    ])  # fmt: skip
    run = folder / "run"
    held = RunFolder(run, resuming=False)
    data = build.build_data(config, None)
    checkpoint = build.teacher_folder(config, data, metrics=run / "metrics.jsonl")
    model = build.build_teacher_model(config, checkpoint)
    identity = hosts.identity_of(config.teacher, checkpoint, data)
    cached = CachedTeacher(cache_of(model, data, folder / "cache", identity), **vars(identity))
    student = build.build_student(config, model, checkpoint)
    places = {"checkpoint": run / "checkpoints", "cache": folder / "cache", "log": run}
    trainer.train(
        student=student, teacher=LocalTeacher(model, dtype="float32"), data=data,
        trainer=config.trainer, training=config.training,
        callbacks=[*callbacks(cached), watch(places)],
        loggers=[*loggers.build_loggers(config, run, resumed_from=None), _csv(run)],
        seed=seed, verbose=False, checkpoints=run / "checkpoints",
    )  # fmt: skip
    held.release()


def cache_of(model: Any, data: Any, path: Path, identity: Any) -> Path:
    """The teacher's answers to every training row."""
    from compress.scripts.lib.cache_teacher import shared_rows
    from compress.teachers.cache_writer import write_cache
    from compress.teachers.local import LocalTeacher

    rows = shared_rows(data.train, 16, device=model.device)
    write_cache(LocalTeacher(model, dtype="float32"), rows, path, identity=identity)
    return path


def _csv(run: Path) -> Any:
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(run / "csv", name="", version="")


def fixed_work() -> float:
    """CPU seconds of a piece of work that is the same after every step: a matmul, a large sum."""
    import torch

    begin = time.process_time()
    square = torch.ones((192, 192))
    for _ in range(8):
        square = square @ square / 192
    torch.ones(1_000_000).mul_(2.0).sum()
    return time.process_time() - begin


def process_figures() -> dict[str, float]:
    """Memory, open files, threads and objects of this process; memory of its children."""
    gc.collect()
    own = _status(os.getpid())
    return {
        "rss_mb": own["VmRSS"] / 1024,
        "anonymous_mb": own["RssAnon"] / 1024,
        "children_mb": sum(_status(child).get("VmRSS", 0.0) for child in _children()) / 1024,
        "handles": float(len(os.listdir("/proc/self/fd"))),
        "threads": own["Threads"],
        "objects": float(len(gc.get_objects())),
    }


def _status(process: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {k: float(v.split()[0]) for k, v in pairs if k in ("VmRSS", "RssAnon", "Threads")}


def _children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


def megabytes(places: dict[str, Path]) -> dict[str, float]:
    """Bytes under each folder; those of `log` without the checkpoints."""
    sizes = {name: _bytes_under(path) / 1e6 for name, path in places.items()}
    sizes["log"] -= sizes["checkpoint"]
    return {f"{name}_mb": size for name, size in sizes.items()}


def _bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
