"""Claims about the Hugging Face Trainer: the same callbacks, the same numbers, exact resume."""

import os
import subprocess
import sys

import lightning as L
import pytest
import torch
from transformers import LlamaForCausalLM, TrainerCallback, TrainingArguments

import compress.callbacks
from compress.callbacks import (
    DynamicSparsity,
    FeatureDistillation,
    LogitsDistillation,
    NumberGuard,
    QuantizationAwareTraining,
    StructuredPruning,
)
from compress.errors import BadInput
from compress.integrations.transformers import CompressionTrainer
from compress.integrations.views import EXTRAS
from compress.module import CompressionModule
from compress.teachers.local import LocalTeacher
from compress.transforms import transformed_layers
from tests.tiny import TinyData, tiny_llama


def wide_teacher() -> LocalTeacher:
    """Wider than the student, so that features are compared through projectors."""
    return LocalTeacher(tiny_llama(layers=3, hidden=64, seed=1), dtype="float32")


def trainer_of(
    folder, *, steps=4, compression=None, teacher=True, data=None, **changes
) -> CompressionTrainer:
    if compression is None:
        compression = [QuantizationAwareTraining(scheme="W8A8"), LogitsDistillation()]
    settings = {"save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, **changes}
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="steps", **settings,
    )  # fmt: skip
    return CompressionTrainer(
        tiny_llama(), args=arguments, train_dataset=data or TinyData(), compression=compression,
        eval_dataset=TinyData(rows=8), teacher=wide_teacher() if teacher else None,
    )  # fmt: skip


def state_of(trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.compressed.state_dict().items()}


class StopAt(TrainerCallback):
    """Ends training early, as a kill would; the schedules still aim at the last step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step
        return control


def test_the_student_learns_quantised_and_every_term_is_logged(tmp_path):
    trainer = trainer_of(tmp_path, steps=30)
    trainer.train()
    losses = [line["train/labels"] for line in trainer.state.log_history if "train/labels" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert any("train/logits" in line for line in trainer.state.log_history)
    layer = trainer.model.model.layers[0].mlp.up_proj
    for row in layer.weight.detach():
        assert len(row.unique()) <= 255  # what the forward uses lies on the int8 grid


def test_transforms_learn_without_weight_decay(tmp_path):
    trainer = trainer_of(tmp_path, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    scales = {
        id(p) for _, layer in transformed_layers(trainer.model)
        for p in layer.parametrizations.weight[0].parameters()
    }  # fmt: skip
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert scales and not scales & decayed
    assert scales <= {id(p) for group in groups for p in group["params"]}


def test_resume_is_bit_exact(tmp_path):
    def callbacks():
        return [
            QuantizationAwareTraining(scheme="W4A16", group_size=32),
            DynamicSparsity(density=0.5, start=0, stop=5, every=1, growth="random"),
            LogitsDistillation(), FeatureDistillation(),
        ]  # fmt: skip

    whole = trainer_of(tmp_path / "whole", steps=6, compression=callbacks())
    whole.train()
    first = trainer_of(tmp_path / "halves", steps=6, compression=callbacks())
    first.add_callback(StopAt(4))
    first.train()
    second = trainer_of(tmp_path / "halves", steps=6, compression=callbacks())
    second.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-4"))
    expected = state_of(whole)
    assert any("features_projectors" in key for key in expected)
    assert all(torch.equal(value, expected[key]) for key, value in state_of(second).items())


def test_all_that_learns_is_what_the_trainer_moves_zeroes_and_clips(tmp_path):
    trainer = trainer_of(tmp_path, compression=[FeatureDistillation()], steps=1)
    trainer.train()
    seen = {id(p) for p in trainer.model_wrapped.parameters()}
    stepped = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in trainer.compressed.features_projectors.parameters()} <= stepped <= seen
    assert all(p.grad is None for p in trainer.compressed.parameters())
    assert not any("projectors" in key for key in trainer.model.state_dict())  # nor any export


class PlainSteps(CompressionModule):
    """Descent without moments: each gradient and its clipping show in the weights."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


@pytest.mark.parametrize("norm", [0.05, 1e9], ids=["clipped", "whole"])
def test_projectors_end_where_lightning_takes_them(tmp_path, norm):
    rows = TinyData(rows=4)  # one batch, whatever the order
    trainer = trainer_of(
        tmp_path, compression=[FeatureDistillation()], data=rows, learning_rate=0.5, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=norm, save_steps=100,
    )  # fmt: skip
    trainer.train()
    module = PlainSteps(student=tiny_llama(), teacher=wide_teacher(), learning_rate=0.5)
    L.Trainer(
        max_steps=4, gradient_clip_val=norm, callbacks=[FeatureDistillation()], accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, torch.utils.data.DataLoader(rows, batch_size=4))  # fmt: skip
    expected = module.state_dict()
    for key, value in state_of(trainer).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)


def test_two_ranks_end_with_one_student_and_the_same_projectors(tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "tests.integrations.trainer_rank", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "rank 0: equal" in done.stdout and "rank 1: equal" in done.stdout


def test_several_gpus_in_one_process_are_refused(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    arguments._n_gpu = 2
    with pytest.raises(BadInput, match="nproc-per-node=2"):
        CompressionTrainer(tiny_llama(), args=arguments, compression=[])


def test_evaluation_is_in_the_precision_of_training(tmp_path):
    seen = []
    trainer = trainer_of(tmp_path, bf16=True, steps=1, save_steps=100)
    layer = trainer.model.model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda module, _, output: seen.append(output.dtype))
    trainer.train()
    trained = len(seen)
    trainer.evaluate()
    assert len(seen) > trained and set(seen) == {torch.bfloat16}


class SpoilAfter(TrainerCallback):
    """A run that gets worse after a step, so that an earlier checkpoint is the best."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model, **_):
        if state.global_step >= self.step:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)


def best_of(folder, compression, **changes) -> CompressionTrainer:
    trainer = trainer_of(
        folder, compression=compression, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, **changes,
    )  # fmt: skip
    trainer.add_callback(SpoilAfter(2))
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    return trainer


def test_the_best_model_is_one_checkpoint_whole(tmp_path):
    def callbacks():
        return [
            DynamicSparsity(density=0.5, start=0, stop=4, every=1),
            QuantizationAwareTraining(scheme="W4A16:32"), FeatureDistillation(),
        ]  # fmt: skip

    best = best_of(tmp_path / "all", callbacks())
    at_its_step = trainer_of(tmp_path / "short", compression=callbacks())
    at_its_step.add_callback(StopAt(2))
    at_its_step.train()
    expected = state_of(at_its_step)
    assert all(torch.equal(value, expected[key]) for key, value in state_of(best).items())
    assert best.evaluate()["eval_loss"] == pytest.approx(best.state.best_metric, rel=1e-6)


def test_the_best_model_is_dense_where_quantisation_had_not_started(tmp_path):
    trainer = best_of(tmp_path, [QuantizationAwareTraining(scheme="W4A16:32", start_step=3)])
    layer = trainer.model.model.layers[0].mlp.up_proj
    assert torch.equal(layer.weight, layer.parametrizations.weight.original)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


def test_masks_hold_and_the_checkpoint_loads_as_a_plain_model(tmp_path):
    sparse = DynamicSparsity(density=0.5, start=0, stop=3, every=1)
    trainer = trainer_of(tmp_path, compression=[sparse], teacher=False)
    trainer.train()
    weight = trainer.model.model.layers[0].mlp.up_proj.weight
    assert (weight != 0).float().mean() == pytest.approx(0.5, abs=0.01)
    folder = tmp_path / "checkpoint-4"
    assert (folder / EXTRAS).exists()
    plain = LlamaForCausalLM.from_pretrained(folder)
    trained = trainer.model.model.layers[0].mlp.up_proj.parametrizations.weight.original
    assert torch.equal(plain.model.layers[0].mlp.up_proj.weight, trained)


def test_accumulation_takes_one_schedule_step_an_optimizer_step(tmp_path):
    seen = []

    class Watching(LogitsDistillation):
        def advance(self, student, optimizer_step):
            seen.append(optimizer_step)

    trainer = trainer_of(tmp_path, compression=[Watching()], gradient_accumulation_steps=2)
    trainer.train()
    assert seen == [1, 2, 3, 4]


def test_evaluation_is_the_labels_loss_alone(tmp_path):
    trainer = trainer_of(tmp_path, compression=[LogitsDistillation(teacher_weight=5.0)])
    figures = trainer.evaluate()
    trainer.model.eval()
    batch = {k: torch.stack([row[k] for row in TinyData(rows=8)]) for k in ("input_ids", "labels")}
    with torch.no_grad():
        assert figures["eval_loss"] == pytest.approx(float(trainer.model(**batch).loss), rel=1e-4)


def test_a_callback_without_its_teacher_is_refused_at_once(tmp_path):
    with pytest.raises(BadInput, match="LogitsDistillation"):
        trainer_of(tmp_path, teacher=False)


METHODS = [name for name in compress.callbacks.__all__ if name != "NumberGuard"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_here_and_resumes_exactly(tmp_path, name):
    def made(folder):
        return trainer_of(folder, compression=[getattr(compress.callbacks, name)()])

    whole, first, second = (made(tmp_path / kind) for kind in ("whole", "halves", "halves"))
    whole.train()
    first.add_callback(StopAt(2))
    first.train()
    second.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-2"))
    expected = state_of(whole)
    assert all(torch.equal(value, expected[key]) for key, value in state_of(second).items())


def test_a_guard_that_would_see_half_of_a_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"NumberGuard: on_after_backward.*\nLeave them out"):
        trainer_of(tmp_path, compression=[LogitsDistillation(), NumberGuard(policy="skip")])


def test_a_callback_of_your_own_with_other_hooks_is_refused(tmp_path):
    class Mine(QuantizationAwareTraining):
        def on_validation_end(self, trainer, pl_module):
            """Would never be called."""

    with pytest.raises(BadInput, match=r"1 of 1 callbacks.*\n  Mine: on_validation_end"):
        trainer_of(tmp_path, compression=[Mine()])


def test_a_pruned_student_ends_smaller(tmp_path):
    pruning = StructuredPruning(ffn_density=0.5, start=1, stop=3, every=1, round_to=1)
    trainer = trainer_of(tmp_path, compression=[pruning])
    trainer.train()
    small = pruning.finalise(trainer.model.eval())
    assert small.config.intermediate_size == 32
    batch = {"input_ids": TinyData(rows=2).tokens}
    with torch.no_grad():
        torch.testing.assert_close(small(**batch).logits, trainer.model(**batch).logits)


def test_a_budget_of_bits_is_planned_on_the_training_rows(tmp_path):
    budget = QuantizationAwareTraining(budget_bits=6.0, budget_schemes=["W4A16:32", "W8A16:32"])
    trainer = trainer_of(tmp_path, compression=[budget], steps=1)
    trainer.train()
    assert budget.report()["quantization"]["bit_plan"]["bits"] <= 6.0


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 3}], ids=str)
def test_fractions_are_of_a_run_that_is_told_in_epochs(tmp_path, changes):
    sparse = DynamicSparsity(density=0.5, stop=0.5)
    trainer = trainer_of(
        tmp_path, compression=[sparse], steps=-1, num_train_epochs=1.5, save_steps=100, **changes
    )
    expected = trainer.view.estimated_stepping_batches
    trainer.train()
    assert trainer.state.max_steps == expected
    assert sparse.settings.stop == round(0.5 * expected)


def test_a_plain_checkpoint_is_no_checkpoint_of_ours(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "plain")
    with pytest.raises(BadInput, match=EXTRAS):
        trainer_of(tmp_path / "run").train(resume_from_checkpoint=str(tmp_path / "plain"))


def test_the_adapter_itself_needs_no_lightning():
    code = "import sys, compress.integrations.transformers; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
