"""The callback in a Lightning run: learns, resumes, starts late, freezes."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from compress.callbacks import QuantizationAwareTraining
from compress.errors import BadInput, UnsupportedScheme
from compress.module import CompressionModule
from compress.quantize.fusion import weight_quantizer
from compress.transforms import transformed_layers
from tests.tiny import TinyData, tiny_llama

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 0,
}  # fmt: skip


def fit(tmp_path, *, steps, ckpt=None, save=None, **settings):
    module = CompressionModule(student=tiny_llama(), learning_rate=3e-3, warmup_steps=1)
    module.trainer_steps = 8
    trainer = L.Trainer(
        max_steps=steps, callbacks=[QuantizationAwareTraining(**settings)],
        default_root_dir=tmp_path, enable_checkpointing=False, **QUIET,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TinyData(), batch_size=8), ckpt_path=ckpt)
    if save is not None:
        trainer.save_checkpoint(save)
    return module


def equal_states(one, other):
    return all(torch.equal(one.state_dict()[k], v) for k, v in other.state_dict().items())


def loss_of(module):
    tokens = TinyData(seed=1).tokens
    with torch.no_grad():
        return module.student(input_ids=tokens, labels=tokens).loss.item()


def test_loss_falls(tmp_path):
    first = loss_of(fit(tmp_path, steps=1, scheme="W4A8", group_size=32))
    last = loss_of(fit(tmp_path, steps=24, scheme="W4A8", group_size=32))
    assert last < 0.8 * first


@pytest.mark.parametrize(
    "settings",
    [
        {"scheme": "W8A8"},
        {"scheme": "W8A8", "activations": "static", "calibration_samples": 8},
        {"scheme": "W4A16", "group_size": 32, "init": "mse", "freeze_step": 3},
        {"scheme": "W8A8", "start_step": 6, "scales": "tracked"},
    ],
)
def test_a_resumed_run_equals_one_without_interruption(tmp_path, settings, monkeypatch):
    # the schedule must know the whole length in both runs
    monkeypatch.setattr(L.Trainer, "estimated_stepping_batches", 8)
    path = tmp_path / "half.ckpt"
    whole = fit(tmp_path, steps=8, **settings)
    fit(tmp_path, steps=4, save=path, **settings)
    resumed = fit(tmp_path, steps=8, ckpt=path, **settings)
    assert equal_states(whole, resumed)


def test_a_late_start_trains_dense_first(tmp_path):
    module = fit(tmp_path, steps=2, scheme="W2A16", group_size=32, start_step=5)
    quantizers = [weight_quantizer(m) for _, m in transformed_layers(module.student)]
    assert not any(q.enabled for q in quantizers)
    later = fit(tmp_path, steps=6, scheme="W2A16", group_size=32, start_step=5)
    assert all(weight_quantizer(m).enabled for _, m in transformed_layers(later.student))


def test_frozen_scales_stop_moving(tmp_path):
    def scales(steps):
        module = fit(tmp_path, steps=steps, scheme="W8A8", freeze_step=2)
        return [weight_quantizer(m).stored_scale() for _, m in transformed_layers(module.student)]

    early, late = scales(2), scales(6)
    assert all(torch.equal(a, b) for a, b in zip(early, late, strict=True))


def test_layers_that_do_not_fit_are_refused_before_training(tmp_path):
    with pytest.raises(UnsupportedScheme, match="down_proj   64 columns"):
        fit(tmp_path, steps=1, scheme="W4A16", group_size=128, include="*down_proj")


@pytest.mark.parametrize(
    "settings", [{"init": "best"}, {"scales": "lerned"}, {"scale_dtype": "int8"}]
)
def test_unknown_words_are_refused_at_once(settings):
    with pytest.raises(BadInput, match=next(iter(settings))):
        QuantizationAwareTraining(**settings)
