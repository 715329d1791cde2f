"""Numbers at their extremes: layers of zeros, constant inputs, rows without labels, loss spikes."""

import lightning as L
import pytest
import torch

from compress.callbacks import DynamicSparsity, NumberGuard, QuantizationAwareTraining
from compress.data.loader import ResumableLoader
from compress.errors import BadInput
from compress.export.write import export
from compress.guard import bad_weights
from compress.module import CompressionModule
from tests.tiny import TinyData, tiny_llama

DYNAMIC = [{"scheme": "W8A8"}, {"scheme": "W4A16", "group_size": 32}, {"scheme": "FP8_DYNAMIC"}]
CALIBRATED = [{"scheme": "W8A8", "activations": "static"}, {"scheme": "NVFP4"}]


def fit(student, *callbacks, data=None, steps=3, **settings):
    torch.manual_seed(0)
    module = CompressionModule(student=student, warmup_steps=0, **settings)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, ResumableLoader(data or TinyData(), batch_size=4, seed=0))
    return module.student, float(trainer.callback_metrics["train/loss"])


def with_a_dead_layer():
    """All of a layer's weights are zero, so that what comes after it sees a constant, zero."""
    student = tiny_llama()
    with torch.no_grad():
        student.model.layers[0].mlp.up_proj.weight.zero_()
        student.model.layers[1].self_attn.v_proj.weight.zero_()
    return student


@pytest.mark.parametrize("settings", CALIBRATED, ids=str)
def test_inputs_that_are_always_zero_give_no_scale_and_are_named(settings):
    with pytest.raises(BadInput, match=r"layers\.0\.mlp\.down_proj: .* non-zero input"):
        fit(with_a_dead_layer(), QuantizationAwareTraining(**settings))


def with_constant_inputs():
    """Every token looks alike: each layer sees one value at all positions."""
    student = tiny_llama()
    with torch.no_grad():
        student.model.embed_tokens.weight.fill_(1.0)
    return student


CASES = [
    *((with_a_dead_layer, settings) for settings in DYNAMIC),
    *((with_constant_inputs, settings) for settings in [*DYNAMIC, *CALIBRATED]),
]


@pytest.mark.parametrize("make, settings", CASES, ids=lambda p: getattr(p, "__name__", str(p)))
def test_layers_of_zeros_and_constant_inputs_train_and_export(make, settings, tmp_path):
    student, loss = fit(make(), QuantizationAwareTraining(**settings), NumberGuard(policy="stop"))
    assert loss == loss and bad_weights(student) == []
    result = export(student, target="transformers", path=tmp_path / "out", dtype="float32")
    assert result.verification.codes_equal and result.verification.scales_equal


def test_a_layer_that_is_pruned_away_stays_dead_and_sound():
    sparsity = DynamicSparsity(density=0.5, growth="none", include="*up_proj")
    student, loss = fit(with_a_dead_layer(), sparsity, NumberGuard(policy="stop"))
    assert loss == loss and bad_weights(student) == []


class Unlabelled(TinyData):
    def __getitem__(self, index):
        row = super().__getitem__(index)
        return {**row, "labels": torch.full_like(row["labels"], -100)}


def test_rows_without_a_label_teach_nothing_and_break_nothing():
    before = {k: v.clone() for k, v in tiny_llama().state_dict().items()}
    student, loss = fit(
        tiny_llama(), NumberGuard(policy="stop"), data=Unlabelled(), weight_decay=0.0
    )
    assert loss == 0.0
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


class Spike(L.Callback):
    """Makes one step's loss huge, by the labels of its batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.label_weight = 1000.0 if trainer.global_step == 10 else 1.0


def test_a_loss_spike_is_passed_over_and_reported():
    guard = NumberGuard(policy="skip", spike_factor=4.0)
    fit(tiny_llama(), Spike(), guard, steps=12)
    assert len(guard.faults) == 1
    assert "step 10: the loss is" in guard.faults[0] and "above 4 times" in guard.faults[0]
