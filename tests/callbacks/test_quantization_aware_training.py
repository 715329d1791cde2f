"""The callback in a Lightning run: learns, resumes, starts late, freezes."""

import lightning as L
import pytest
import torch

from compress.callbacks import QuantizationAwareTraining
from compress.data.loader import ResumableLoader
from compress.errors import BadInput, UnsupportedScheme
from compress.module import CompressionModule
from compress.quantize.fusion import weight_quantizer
from compress.transforms import (
    Stage,
    plain_state_dict,
    trained_weight,
    transformed_layers,
    weight_before,
)
from tests.tiny import TinyData, tiny_llama

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 0,
}  # fmt: skip


def fit(tmp_path, *, steps, ckpt=None, save=None, run=None, **settings):
    L.seed_everything(0, verbose=False)
    run = dict(run or {})
    compiled, checkpointing = run.pop("compile", False), run.pop("checkpointing", False)
    module = CompressionModule(
        student=tiny_llama(), learning_rate=3e-3, warmup_steps=1, compile=compiled
    )
    if checkpointing:
        module.student.gradient_checkpointing_enable({"use_reentrant": False})
    module.callback = QuantizationAwareTraining(**settings)
    trainer = L.Trainer(
        max_steps=steps, callbacks=[module.callback],
        default_root_dir=tmp_path, enable_checkpointing=False, **QUIET, **run,
    )  # fmt: skip
    trainer.fit(module, ResumableLoader(TinyData(), batch_size=8), ckpt_path=ckpt)
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
        {"scheme": "W4A16", "group_size": 32, "init": "gptq", "kv_cache": "fp8"},
        {"budget_bits": 4.5, "embeddings": "W8A16:32", "calibration_samples": 4},
        {"scheme": "W4A8", "group_size": 32, "adapter_rank": 4, "init": "smoothquant"},
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


@pytest.mark.parametrize(
    "run",
    [
        {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
        {"precision": "bf16-mixed", "checkpointing": True},
        {"checkpointing": True},
    ],
)
@pytest.mark.parametrize("scheme", ["W8A8", "NVFP4"])
def test_trains_under_the_trainer_settings_people_use(tmp_path, run, scheme):
    settings = {"scheme": scheme, "kv_cache": "fp8", "calibration_samples": 8}
    first = loss_of(fit(tmp_path, steps=1, run=run, **settings))
    module = fit(tmp_path, steps=16, run=run, **settings)
    assert loss_of(module) < 0.95 * first
    assert {p.dtype for p in module.student.parameters()} == {torch.float32}


def test_checkpointed_activations_give_the_same_weights(tmp_path):
    plain = fit(tmp_path, steps=3, scheme="W4A8", group_size=32)
    saving = fit(tmp_path, steps=3, run={"checkpointing": True}, scheme="W4A8", group_size=32)
    pairs = zip(plain.state_dict().items(), saving.state_dict().values(), strict=True)
    assert [name for (name, one), other in pairs if not torch.allclose(one, other)] == []


@pytest.mark.nightly
def test_a_compiled_run_learns_as_the_eager_one(tmp_path):
    eager = fit(tmp_path, steps=6, scheme="W4A8", group_size=32)
    compiled = fit(tmp_path, steps=6, run={"compile": True}, scheme="W4A8", group_size=32)
    assert loss_of(compiled) == pytest.approx(loss_of(eager), rel=1e-2)


def test_a_budget_is_kept_and_reported(tmp_path):
    module = fit(tmp_path, steps=1, budget_bits=4.0, calibration_samples=4)
    facts = module.callback.report()["quantization"]
    assert 3.5 < facts["bit_plan"]["bits"] <= 4.0
    plan = {n: weight_quantizer(m).args.num_bits for n, m in transformed_layers(module.student)}
    assert plan == {n: int(s[1]) for n, s in facts["bit_plan"]["schemes"].items()}
    assert len(set(plan.values())) > 1
    assert facts["bit_plan"]["export_dtype"] == "float32"


def test_a_budget_counts_the_scales_as_they_are_trained(tmp_path):
    """Of 16 bits, every layer can have four bits and a scale for 32 of them; of 32 bits, not."""
    told = {"budget_bits": 4.5, "calibration_samples": 4, "budget_schemes": "W2A16:32,W4A16:32"}
    chosen = {
        dtype: set(planned(tmp_path, scale_dtype=dtype, **told)["schemes"].values())
        for dtype in (None, "bfloat16")
    }
    assert chosen == {None: {"W2A16:32", "W4A16:32"}, "bfloat16": {"W4A16:32"}}


def planned(tmp_path, **settings):
    return fit(tmp_path, steps=1, **settings).callback.report()["quantization"]["bit_plan"]


def test_what_calibration_saw_is_reported(tmp_path):
    settings = {"scheme": "W8A8", "activations": "static", "calibration_samples": 8}
    module = fit(tmp_path, steps=1, calibration_seed=3, **settings)
    assert module.callback.report()["quantization"]["calibration"] == {
        "init": "rtn", "source": "training rows", "samples": 8, "seed": 3
    }  # fmt: skip


def test_adapters_are_all_that_is_trained(tmp_path):
    module = fit(tmp_path, steps=4, scheme="W4A16", group_size=32, adapter_rank=2)
    fresh = dict(tiny_llama().named_parameters())
    state = plain_state_dict(module.student, transformed=False)
    assert all(torch.equal(state[name], value) for name, value in fresh.items())
    layer = module.student.model.layers[0].mlp.up_proj
    assert not torch.equal(weight_before(layer, Stage.QUANTIZE), trained_weight(layer))
    count = sum(p.numel() for p in module.student.parameters() if p.requires_grad)
    assert count < 0.3 * sum(p.numel() for p in fresh.values())


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
    "settings",
    [
        {"init": "best"}, {"scales": "lerned"}, {"scale_dtype": "int8"}, {"observer": "max"},
        {"backward": "ste"}, {"kv_cache": "int4"},
    ],
)  # fmt: skip
def test_unknown_words_are_refused_at_once(settings):
    with pytest.raises(BadInput, match=next(iter(settings))):
        QuantizationAwareTraining(**settings)


def test_a_second_one_on_the_same_student_is_refused():
    student = tiny_llama()
    QuantizationAwareTraining(scheme="W8A8", include="*self_attn*").attach(student)
    second = QuantizationAwareTraining(scheme="W4A16:32", include="*mlp*", name="late")
    with pytest.raises(BadInput, match="as overrides="):
        second.attach(student)
