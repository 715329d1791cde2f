"""One case of the matrix: it trains, it resumes bit for bit, its export reloads equal."""

from pathlib import Path

import lightning as L
import torch

from compress.callbacks import (
    DynamicSparsity,
    FeatureDistillation,
    LogitsDistillation,
    QuantizationAwareTraining,
    RoutedDistillation,
    StructuredPruning,
)
from compress.data.loader import ResumableLoader
from compress.export.write import export
from compress.module import CompressionModule
from compress.scripts.lib.checkpoints import SafeCheckpointIO
from tests.callbacks.distill_support import teacher
from tests.matrix.cases import METHODS, Case
from tests.tiny import TinyData, tiny_llama

STEPS, CUT = 8, 5
TEACHED = ("logits", "features", "routing")
CLASSES = {
    "qat": QuantizationAwareTraining, "sparsity": DynamicSparsity, "pruning": StructuredPruning,
    "logits": LogitsDistillation, "features": FeatureDistillation, "routing": RoutedDistillation,
}  # fmt: skip
SCHEDULED = {
    "sparsity": {"start": 0, "stop": 6, "every": 2},
    "pruning": {"start": 1, "stop": 4, "every": 1, "samples": 8},
}


def callbacks_of(case: Case) -> list[L.Callback]:
    """Fresh callbacks, as a recipe would name them."""
    return [
        CLASSES[method](**SCHEDULED.get(method, {}) | METHODS[method][kind])
        for method, kind in case.kinds
    ]


class Losses(L.Callback):
    """The label loss of each micro-batch."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *args, **kwargs):
        self.values.append(float(trainer.callback_metrics["train/labels"]))


def fit(case: Case, *, until=STEPS, ckpt=None, save=None):
    """One training; answers the module, its callbacks and its losses."""
    torch.manual_seed(0)
    methods = {method for method, _ in case.kinds}
    module = CompressionModule(
        student=tiny_llama(layers=2, hidden=32),
        teacher=teacher() if methods & set(TEACHED) else None,
        learning_rate=5e-3, warmup_steps=0, final_share=1.0,
    )  # fmt: skip
    callbacks, losses = callbacks_of(case), Losses()
    strategy = "ddp_find_unused_parameters_true" if case.ranks > 1 else "auto"
    trainer = L.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=case.ranks, strategy=strategy,
        precision=case.precision, accumulate_grad_batches=case.accumulate, gradient_clip_val=1.0,
        callbacks=[*callbacks, losses, *([StopAt(until)] if until < STEPS else [])],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        plugins=[SafeCheckpointIO()],
    )  # fmt: skip
    trainer.fit(module, ResumableLoader(TinyData(rows=96), batch_size=8), ckpt_path=ckpt)
    if save:
        trainer.save_checkpoint(save)
    return module, callbacks, losses.values


class StopAt(L.Callback):
    """Ends a run early that was planned to be longer: schedules see the whole length."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args, **kwargs):
        trainer.should_stop = trainer.global_step >= self.step


def trains_and_resumes(case: Case, folder: Path):
    """The trained module and its callbacks; an AssertionError where a claim does not hold."""
    module, callbacks, losses = fit(case)
    start, end = losses[0], min(losses[-2 * case.accumulate :])
    assert all(torch.isfinite(torch.tensor(losses))), losses
    assert end < start, f"the loss went from {start:.3f} to {end:.3f}"

    fit(case, until=CUT, save=folder / "cut.ckpt")
    again, _, _ = fit(case, ckpt=folder / "cut.ckpt")
    expected, found = module.student.state_dict(), again.student.state_dict()
    assert expected.keys() == found.keys()
    other = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not other, f"resumed, {len(other)} tensors differ: {other[:3]}"
    return module, callbacks


def exports_and_reloads(module, callbacks, folder: Path) -> None:
    """`export` itself compares tensors and logits of what it wrote; it raises where they differ."""
    student = module.student
    for callback in callbacks:
        student = callback.finalise(student)
    result = export(student, target="transformers", path=folder / "export", dtype="float32")
    assert result.verification.codes_equal
    assert result.verification.scales_equal


def prove(case: Case, folder: Path) -> None:
    """All three claims, in one process."""
    exports_and_reloads(*trains_and_resumes(case, folder), folder)
