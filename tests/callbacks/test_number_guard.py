"""Claims about the guard: what is no number is found within a step, named, and dealt with."""

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from compress.callbacks import (
    DynamicSparsity,
    FeatureDistillation,
    NumberGuard,
    QuantizationAwareTraining,
    StructuredPruning,
)
from compress.data.loader import ResumableLoader
from compress.errors import BadInput
from compress.guard import NumbersFailed, bad_weights, is_spike, not_finite
from compress.module import CompressionModule
from compress.quantize.fusion import input_quantizer
from compress.snapshot import Snapshot
from compress.teachers.local import LocalTeacher
from tests.tiny import TinyData, tiny_llama


class Fault(L.Callback):
    """Does harm at one micro-batch."""

    def __init__(self, at, harm):
        self.at, self.harm, self.seen = at, harm, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen += 1
        if self.seen == self.at:
            self.harm(pl_module)


def poison_gradient(pl_module):
    weight = pl_module.student.model.layers[1].mlp.down_proj.parameters().__next__()
    handle = weight.register_hook(lambda g: (handle.remove(), g * float("nan"))[1])


def poison_weight(pl_module):
    with torch.no_grad():
        next(pl_module.student.model.layers[1].mlp.down_proj.parameters()).fill_(float("nan"))


def fit(
    guard, *, fault=None, steps=6, accumulate=1, callbacks=(), guard_first=False, teacher=None,
    **more,
):  # fmt: skip
    torch.manual_seed(0)
    module = CompressionModule(student=tiny_llama(), teacher=teacher)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, accumulate_grad_batches=accumulate, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **more,
        callbacks=[
            *([fault] if fault else []),
            *([guard, *callbacks] if guard_first else [*callbacks, guard]),
        ],
    )  # fmt: skip
    trainer.fit(module, ResumableLoader(TinyData(), batch_size=4, seed=0))
    return module


def test_a_sound_run_is_left_alone():
    plain = fit(NumberGuard(policy="rollback"))
    guarded = fit(NumberGuard(policy="stop"))
    for one, other in zip(plain.parameters(), guarded.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_stop_names_the_step_and_the_layer_of_a_bad_gradient(accumulate):
    guard = NumberGuard()
    with pytest.raises(
        NumbersFailed, match=r"step 1: the gradients of .*layers\.1\.mlp\.down_proj"
    ):
        fit(guard, fault=Fault(accumulate + 1, poison_gradient), accumulate=accumulate)


def test_a_bad_weight_is_named_with_the_layer_and_the_term():
    with pytest.raises(NumbersFailed) as refused:
        fit(NumberGuard(), fault=Fault(3, poison_weight))
    for words in (
        "step 2", "the loss is nan", "loss terms at fault: labels",
        "weights at fault: student.model.layers.1.mlp.down_proj.weight",
        "first layer whose output is no number: model.layers.1.mlp.down_proj",
    ):  # fmt: skip
        assert words in str(refused.value)


def test_skip_drops_one_step_and_no_other():
    guard = NumberGuard(policy="skip")
    module = fit(guard, fault=Fault(3, poison_gradient))
    assert len(guard.faults) == 1
    assert guard.faults[0].startswith("step 2")
    assert not bad_weights(module.student)
    state = module.optimizers().state
    assert {int(s["step"]) for s in state.values()} == {5}


@pytest.mark.parametrize("harm", [poison_gradient, poison_weight])
def test_rollback_goes_on_from_the_snapshot(harm):
    guard = NumberGuard(policy="rollback", snapshot_every=2)
    module = fit(guard, fault=Fault(4, harm), callbacks=[QuantizationAwareTraining()])
    assert len(guard.faults) == 1
    assert not bad_weights(module.student)


def static(**settings):
    return QuantizationAwareTraining(scheme="W8A8", activations="static", **settings)


def pruning():
    return StructuredPruning(ffn_density=0.5, round_to=8, start=0, stop=3, every=3, samples=8)


AT_STEP_3 = {
    "prune": pruning,
    "sparsify": lambda: DynamicSparsity(density=0.2, schedule="cubic", start=1, stop=3, every=2),
    "freeze": lambda: QuantizationAwareTraining(scheme="W4A16", group_size=32, freeze_step=3),
    "start": lambda: QuantizationAwareTraining(scheme="W4A16", group_size=32, start_step=3),
    "start-static": lambda: static(start_step=3),
}


class Remember:
    """Notes the student as it is, and then does harm."""

    def __call__(self, pl_module):
        self.state = {k: v.clone() for k, v in pl_module.student.state_dict().items()}
        poison_gradient(pl_module)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("guard_first", [True, False], ids=["guard-first", "guard-last"])
@pytest.mark.parametrize("scheduled", AT_STEP_3)
def test_going_back_undoes_no_scheduled_change(scheduled, guard_first, accumulate):
    guard, harm, callback = NumberGuard(policy="rollback"), Remember(), AT_STEP_3[scheduled]()
    module = fit(
        guard, fault=Fault(3 * accumulate + 1, harm), callbacks=[callback], steps=4,
        guard_first=guard_first, accumulate=accumulate,
    )  # fmt: skip
    assert len(guard.faults) == 1
    assert callback.changed_at == 3
    for name, tensor in module.student.state_dict().items():
        assert torch.equal(tensor, harm.state[name]), name


def test_the_first_snapshot_waits_for_every_callbacks_start():
    module = fit(
        NumberGuard(policy="rollback"), fault=Fault(2, poison_gradient), callbacks=[static()],
        guard_first=True, steps=3,
    )  # fmt: skip
    inputs = input_quantizer(module.student.model.layers[0].mlp.up_proj)
    assert inputs.ready
    assert float(inputs.base_scale) > 0


def test_what_is_cut_after_going_back_is_what_was_trained():
    prune = pruning()
    guard = NumberGuard(policy="rollback", snapshot_every=2)
    student = fit(guard, fault=Fault(4, poison_gradient), callbacks=[prune]).student.eval()
    tokens = TinyData().tokens[:4]
    with torch.no_grad():
        trained, cut = student(tokens).logits, prune.finalise(student).eval()(tokens).logits
    torch.testing.assert_close(cut, trained, atol=1e-5, rtol=0)


class PoisonedStep(L.Callback):
    """The optimizer's second step leaves a bad weight."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == 2:
            poison_weight(pl_module)


def test_a_bad_weight_in_the_step_of_a_scheduled_change_ends_the_run():
    freeze = QuantizationAwareTraining(scheme="W4A16", group_size=32, freeze_step=2)
    with pytest.raises(NumbersFailed, match=r"step 2: weights at fault: .*no way back over it"):
        fit(NumberGuard(policy="rollback"), callbacks=[PoisonedStep(), freeze])


def test_a_guard_before_the_schedule_mends_the_weight_first():
    freeze = QuantizationAwareTraining(scheme="W4A16", group_size=32, freeze_step=2)
    guard = NumberGuard(policy="rollback")
    module = fit(guard, fault=PoisonedStep(), callbacks=[freeze], guard_first=True)
    assert len(guard.faults) == 1
    assert not bad_weights(module.student)


def test_bad_weights_are_no_snapshot():
    with pytest.raises(NumbersFailed, match="step 0: weights at fault"):
        fit(NumberGuard(policy="rollback"), fault=Fault(1, poison_weight))


def test_a_scale_that_waits_for_calibration_is_no_fault():
    guard = NumberGuard()
    fit(guard, callbacks=[static(start_step=3)])
    assert guard.faults == []


def fp16(**scaling):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, **scaling)
    return [MixedPrecision("16-mixed", "cpu", scaler=scaler)]


class BadLoss(L.Callback):
    """Multiplies the loss of one step."""

    def __init__(self, step, factor):
        self.step, self.factor = step, factor

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.label_weight = self.factor if trainer.global_step == self.step else 1.0


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_step_in_fp16_is_dropped_through_the_loss_scaler(policy):
    guard = NumberGuard(policy=policy, snapshot_every=2)
    module = fit(guard, fault=BadLoss(3, float("nan")), plugins=fp16())
    assert len(guard.faults) == 1
    assert not bad_weights(module.student)
    state = module.optimizers().state
    assert {int(s["step"]) for s in state.values()} == {5 if policy == "skip" else 4}


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_spike_in_fp16_is_dropped_through_the_loss_scaler(policy):
    guard = NumberGuard(policy=policy, spike_factor=4.0)
    module = fit(guard, fault=BadLoss(9, 100.0), plugins=fp16(), steps=10)
    assert len(guard.faults) == 1
    assert "step 9: the loss is" in guard.faults[0]
    steps = {int(s["step"]) for s in module.optimizers().state.values()}
    assert steps == ({9} if policy == "skip" else set())


def test_losses_in_fp16_are_compared_without_the_scalers_factor():
    guard = NumberGuard(policy="skip", spike_factor=4.0)
    # the factor grows a thousandfold meanwhile
    fit(guard, plugins=fp16(growth_interval=1, growth_factor=2.0), steps=12)
    assert guard.faults == []
    assert max(guard.losses_seen) < 10


PAIR = {"pairs": {"model.layers.0": "model.layers.1"}, "loss": "mse"}


def poison_projector(pl_module):
    with torch.no_grad():
        next(pl_module.features_projectors.projectors.parameters()).fill_(float("nan"))


def poison_projector_gradient(pl_module):
    weight = next(pl_module.features_projectors.projectors.parameters())
    handle = weight.register_hook(lambda g: (handle.remove(), g * float("nan"))[1])


@pytest.mark.parametrize("harm", [poison_projector, poison_projector_gradient])
def test_a_projector_is_named_and_rolled_back_like_a_layer(harm):
    def run(guard):
        wide, features = LocalTeacher(tiny_llama(hidden=64)), FeatureDistillation(**PAIR)
        return fit(guard, fault=Fault(3, harm), teacher=wide, callbacks=[features])

    with pytest.raises(NumbersFailed, match=r"features_projectors\.projectors"):
        run(NumberGuard())
    guard = NumberGuard(policy="rollback")
    module = run(guard)
    assert len(guard.faults) == 1
    assert bad_weights(module) == []


def test_skip_cannot_mend_a_weight():
    guard = NumberGuard(policy="skip", most_faults=2)
    with pytest.raises(NumbersFailed, match=r"weights at fault"):
        fit(guard, fault=Fault(2, poison_weight))


def test_every_policy_ends_after_too_many_faults():
    def always(pl_module):
        poison_gradient(pl_module)

    fault = Fault(1, always)
    fault.on_train_batch_start = lambda trainer, module, batch, idx: always(module)
    with pytest.raises(NumbersFailed, match=r"\(3 faults\)"):
        fit(NumberGuard(policy="skip", most_faults=2), fault=fault)


def test_the_faults_survive_a_checkpoint():
    guard, other = NumberGuard(policy="skip"), NumberGuard(policy="skip")
    fit(guard, fault=Fault(3, poison_gradient))
    other.load_state_dict(guard.state_dict())
    assert other.report() == guard.report()
    assert other.losses_seen == guard.losses_seen


@pytest.mark.parametrize(
    "setting",
    [{"policy": "skp"}, {"spike_factor": 0.5}, {"snapshot_every": 0}, {"most_faults": -1}],
)
def test_settings_that_cannot_work_are_refused(setting):
    with pytest.raises(BadInput):
        NumberGuard(**setting)


def test_spikes_are_measured_by_the_median():
    assert is_spike(9.0, [2.0] * 7 + [100.0], factor=3.0)
    assert not is_spike(9.0, [2.0] * 7, factor=3.0)
    assert not is_spike(1e9, [2.0] * 64, factor=0.0)


def test_large_numbers_are_numbers():
    assert not_finite([("a", torch.full((4,), 3e38)), ("b", torch.zeros(0))]) == []
    assert not_finite([("a", torch.tensor([float("-inf")])), ("b", torch.ones(1).half())]) == ["a"]


def test_a_scale_of_zero_is_named():
    student = tiny_llama()
    QuantizationAwareTraining().attach(student)
    assert bad_weights(student) == []
    layer = student.model.layers[0].mlp.up_proj
    layer.parametrizations.weight[0].base_scale[3] = 0.0
    assert bad_weights(student) == [
        "model.layers.0.mlp.up_proj.parametrizations.weight.0.base_scale (at or below 0)"
    ]


def test_a_snapshot_brings_back_weights_and_optimizer():
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    snapshot, before = Snapshot(model, [optimizer]), model.weight.clone()
    optimizer.step()
    assert not torch.equal(model.weight, before)
    snapshot.restore(model, [optimizer])
    assert torch.equal(model.weight, before)
    assert int(optimizer.state[model.weight]["step"]) == 1
    assert model.weight.grad is None


def test_going_back_leaves_the_learning_rate_to_its_schedule():
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    snapshot = Snapshot(model, [optimizer])
    optimizer.param_groups[0]["lr"] = 0.05
    snapshot.restore(model, [optimizer])
    assert optimizer.param_groups[0]["lr"] == 0.05
