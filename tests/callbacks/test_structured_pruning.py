"""Structured pruning in a real run: masks while training, a smaller model after, exact resume."""

import os
import subprocess
import sys
from itertools import pairwise

import lightning as L
import pytest
import torch

from compress.callbacks import (
    DynamicSparsity,
    LogitsDistillation,
    QuantizationAwareTraining,
    StructuredPruning,
)
from compress.data.loader import ResumableLoader
from compress.errors import BadInput, UnsupportedScheme
from compress.export.gate import gate
from compress.module import CompressionModule
from compress.teachers.local import LocalTeacher
from compress.transforms import trained_weight
from tests.callbacks.test_dynamic_sparsity import StopAt
from tests.tiny import TinyData, tiny_batch, tiny_llama

SIZES = {"ffn_density": 0.5, "heads_density": 0.5, "layers": 2, "round_to": 8, "block": 4}


def pruning(**changes):
    return StructuredPruning(**{**SIZES, "stop": 4, "every": 2, "samples": 8, **changes})


def everything():
    """Pruning, sparsity, quantisation and distillation in one run."""
    return [
        pruning(),
        DynamicSparsity(pattern="2:4", density=None, every=2, stop=5, decay=2e-4),
        QuantizationAwareTraining(scheme="W8A8", calibration_samples=4),
        LogitsDistillation(),
    ]


def fit(callbacks, *, until=6, ckpt=None, accumulate=1, precision="32-true", steps=6):
    L.seed_everything(0, verbose=False)
    module = CompressionModule(
        student=tiny_llama(layers=3), teacher=LocalTeacher(tiny_llama(layers=3, seed=1)),
        warmup_steps=1,
    )  # fmt: skip
    trainer = L.Trainer(
        max_steps=steps, accumulate_grad_batches=accumulate, gradient_clip_val=0.5,
        callbacks=[*callbacks, StopAt(until)], accelerator="cpu", precision=precision,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, ResumableLoader(TinyData(rows=80), batch_size=4), ckpt_path=ckpt)
    return module, trainer


def finalised(callbacks, module):
    student = module.student
    for callback in callbacks:
        student = callback.finalise(student) if hasattr(callback, "finalise") else student
    return student


def test_widths_shrink_step_by_step_and_end_where_asked():
    callback = pruning()
    module, _ = fit([callback])
    ffn = [record["ffn"] for record in callback.history]
    assert [record["step"] for record in callback.history] == [0, 2, 4]
    assert ffn[0] == 64 and ffn == sorted(ffn, reverse=True) and ffn[-1] == 32
    small = callback.finalise(module.student)
    assert (small.config.intermediate_size, small.config.num_attention_heads) == (32, 2)
    assert small.config.num_hidden_layers == len(small.model.layers) == 2
    assert callback.report()["pruning"]["layers"] == 2


@pytest.mark.parametrize("importance", ["activation", "l1", "taylor"])
def test_each_plan_lies_within_the_one_before(importance):
    """A masked head still averages its values: large ones must not bring it back."""
    student = tiny_llama(layers=3, mlp_bias=True, hidden=64, num_attention_heads=8)
    callback = StructuredPruning(
        **{**SIZES, "layers": None, "kv_density": 0.5}, importance=importance, stop=4, every=1,
        samples=8,
    )  # fmt: skip
    callback.attach(student)
    callback.initialise(student, TinyData(rows=16))
    plans = []
    for step in range(5):
        callback.advance(student, step)
        plans.append(callback.plan)
        with torch.no_grad():
            for layer, heads, ffn in zip(
                student.model.layers, callback.plan.heads, callback.plan.ffn, strict=True
            ):
                dead = [head for head in range(8) if head not in heads]
                values = trained_weight(layer.self_attn.v_proj).view(2, -1, 64)
                values[[head // 4 for head in dead]] *= 3.0
                layer.mlp.up_proj.bias[[c for c in range(128) if c not in ffn]] += 9.0
                layer.mlp.gate_proj.bias[[c for c in range(128) if c not in ffn]] += 9.0
    for before, after in pairwise(plans):
        for part in ("ffn", "heads", "kv_heads"):
            for was, now in zip(getattr(before, part), getattr(after, part), strict=True):
                assert set(now) <= set(was), part


def test_training_goes_on_in_the_masked_model_and_the_shrunk_one_is_it():
    callback = pruning()
    module, _ = fit([callback])
    small = callback.finalise(module.student)
    with torch.no_grad():
        masked = module.student.eval()(**tiny_batch()).logits
        torch.testing.assert_close(small.eval()(**tiny_batch()).logits, masked)


def test_all_four_compose_and_the_file_holds_the_masks(tmp_path):
    from compress.export.plan import collect_plan
    from compress.export.write import export

    callbacks = everything()
    module, _ = fit(callbacks, accumulate=3, precision="bf16-mixed")
    small = finalised(callbacks, module)
    result = export(small, target="vllm", path=tmp_path / "out")
    assert result.verified and result.verification.zeros_equal
    assert (tmp_path / "out/sparsity.json").exists()
    for layer in collect_plan(small).sparse:
        assert (layer.mask.reshape(layer.shape[0], -1, 4).sum(-1) == 2).all(), layer.name


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_resume_is_bit_exact_with_everything_at_once(cut, tmp_path):
    whole, at_end = everything(), tmp_path / "cut.ckpt"
    expected, _ = fit(whole)
    _, trainer = fit(everything(), until=cut)
    trainer.save_checkpoint(at_end)
    again = everything()
    resumed, _ = fit(again, ckpt=at_end)
    state = resumed.state_dict()
    assert [k for k, v in expected.state_dict().items() if not state[k].equal(v)] == []
    assert again[0].history == whole[0].history and again[0].plan == whole[0].plan
    ours, theirs = (finalised(c, m) for c, m in ((again, resumed), (whole, expected)))
    assert all(a.equal(b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_two_ranks_agree_and_resume_exactly_with_everything_at_once(tmp_path):
    """DDP over gloo, accumulation 3, clipping, bf16-mixed: masks, plans and weights are equal."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "tests.callbacks.sparse_rank", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "rank 0: equal" in done.stdout and "rank 1: equal" in done.stdout


def test_a_finished_run_taken_up_again_gives_the_same_small_model(tmp_path):
    callback = pruning()
    module, trainer = fit([callback])
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    again = pruning()
    resumed, _ = fit([again], ckpt=tmp_path / "end.ckpt")
    ours, theirs = again.finalise(resumed.student), callback.finalise(module.student)
    assert all(a.equal(b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_channels_that_will_be_cut_are_no_sparsity_to_the_gate():
    student = tiny_llama(layers=3)
    pruning().attach(student)
    gate(student, target="vllm", purpose="speed")


def test_a_group_that_pruning_would_split_is_refused_before_the_first_step():
    quantised = QuantizationAwareTraining(scheme="W4A16", group_size=32, calibration_samples=4)
    callbacks = [pruning(ffn_density=0.75, round_to=8, heads_density=1.0, layers=None), quantised]
    with pytest.raises(UnsupportedScheme, match="group_size=32"):
        fit(callbacks)


def test_pruning_after_the_last_mask_update_is_refused():
    sparsity = DynamicSparsity(density=0.5, every=1, stop=2)
    with pytest.raises(BadInput, match="Let pruning stop first"):
        fit([pruning(), sparsity])


def test_a_schedule_longer_than_the_run_is_refused():
    with pytest.raises(BadInput, match="stop=9, but the run ends after 6"):
        fit([pruning(stop=9)])


def test_without_training_the_whole_cut_is_made_at_once():
    student, callback = tiny_llama(layers=3), pruning(stop=0.5)
    callback.attach(student)
    callback.compress_at_once(student, TinyData(rows=16))
    assert callback.finalise(student).config.intermediate_size == 32


@pytest.mark.parametrize("name", ["sparsity", "pruning"])
def test_the_recipe_holds_every_setting_with_its_default(name):
    import inspect
    from pathlib import Path

    from omegaconf import OmegaConf

    import compress.recipes

    path = Path(compress.recipes.__file__).parent / "callbacks" / f"{name}.yaml"
    settings = OmegaConf.to_container(OmegaConf.load(path))
    kind = {"sparsity": DynamicSparsity, "pruning": StructuredPruning}[name]
    assert settings.pop("_target_") == f"compress.callbacks.{kind.__name__}"
    signature = inspect.signature(kind).parameters
    assert settings == {key: parameter.default for key, parameter in signature.items()}
