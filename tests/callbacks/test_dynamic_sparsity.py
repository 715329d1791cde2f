"""Dynamic sparsity in a real training run: exact, dead stays dead, resumes to the bit."""

import lightning as L
import pytest
import torch

from compress.callbacks import DynamicSparsity, QuantizationAwareTraining
from compress.data.loader import ResumableLoader
from compress.errors import BadInput, UnsupportedScheme
from compress.module import CompressionModule
from compress.quantize.adapters import LowRankAdapter
from compress.sparsify.dynamics import SparseLayers
from compress.sparsify.masks import topk_mask
from compress.sparsify.settings import SparsitySettings
from compress.sparsify.transform import MaskWeight
from compress.targets import choose_layers
from compress.transforms import trained_weight, transformed_layers
from tests.tiny import TinyData, tiny_batch, tiny_llama

WAYS = {
    "static": {"growth": "none"},
    "set": {"growth": "random"},
    "rigl": {"growth": "gradient", "budget": "erk"},
    "sr-ste": {"growth": "magnitude", "pattern": "2:4", "density": None, "decay": 2e-4},
    "top-kast": {"growth": "magnitude", "backward_density": 0.75},
    "ac-dc": {"growth": "phases"},
    "gradual": {"growth": "magnitude", "schedule": "cubic", "budget": "global"},
    "blocks": {"growth": "gradient", "pattern": "8x8"},
}
EXACT = [way for way in WAYS if way not in ("rigl", "gradual")]


class StopAt(L.Callback):
    """Ends a run early, as an interruption would: schedules still see its whole length."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


def fit(way="rigl", *, until=6, accumulate=1, ckpt=None, also=(), precision="32-true", **changes):
    L.seed_everything(0, verbose=False)
    settings = {"density": 0.5, "every": 2, "stop": 5, **WAYS[way], **changes}
    sparsity = DynamicSparsity(**settings)
    module = CompressionModule(student=tiny_llama(layers=1), warmup_steps=1)
    trainer = L.Trainer(
        max_steps=6, accumulate_grad_batches=accumulate, gradient_clip_val=0.5,
        callbacks=[sparsity, *also, StopAt(until)], accelerator="cpu", logger=False,
        precision=precision, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, ResumableLoader(TinyData(rows=80), batch_size=4), ckpt_path=ckpt)
    return module, sparsity, trainer


def masks_of(module):
    return {
        name: layer.parametrizations.weight[0] for name, layer in transformed_layers(module.student)
    }


class Watch(L.Callback):
    """Notes at each step whether unused entries moved, and the norm that clipping sees."""

    def __init__(self):
        self.unused_gradient = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.unused_gradient.append(
            sum(
                float((trained_weight(layer).grad * ~layer.parametrizations.weight[0].forward_mask)
                      .abs().sum())
                for _, layer in transformed_layers(pl_module.student)
            )
        )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_growth_ends_at_its_density(way):
    module, sparsity, _ = fit(way)
    masks = masks_of(module)
    assert sparsity.history[-1]["density"] == pytest.approx(0.5, abs=1e-3)
    if way in EXACT:
        for mask in masks.values():
            assert int(mask.forward_mask.sum()) * 2 == mask.forward_mask.numel()
    assert [r["step"] for r in sparsity.history] == [0, 2, 4, 5]


@pytest.mark.parametrize("way", ["static", "set", "rigl"])
def test_dead_weights_stay_exactly_zero_through_adam_clipping_and_decay(way):
    watch = Watch()
    module, _, trainer = fit(way, also=[watch])
    (optimizer,) = trainer.optimizers
    for name, layer in transformed_layers(module.student):
        weight, dead = trained_weight(layer), ~masks_of(module)[name].forward_mask
        assert (weight[dead] == 0).all()
        assert (optimizer.state[weight]["exp_avg"][dead] == 0).all()
        assert (optimizer.state[weight]["exp_avg_sq"][dead] == 0).all()
    assert watch.unused_gradient == [0.0] * 6  # before clipping


def test_a_dense_backward_reaches_unused_weights_until_stop():
    watch = Watch()
    fit("sr-ste", also=[watch])
    assert all(value > 0 for value in watch.unused_gradient[:5])
    assert watch.unused_gradient[5] == 0.0


def with_adapters(**changes):
    settings = {"density": 0.5, "every": 2, "stop": 5, **changes}
    sparsity, student = DynamicSparsity(**settings), tiny_llama(layers=1)
    sparsity.attach(student)
    adapted = QuantizationAwareTraining(scheme="W8A16", group_size=32, adapter_rank=4)
    adapted.attach(student)
    return student, sparsity


def test_beside_adapters_masks_follow_the_sum_of_weight_and_adapter():
    student, sparsity = with_adapters(schedule="constant")
    with torch.no_grad():
        for adapter in (m for m in student.modules() if isinstance(m, LowRankAdapter)):
            adapter.up_OR.normal_()
    for step in (2, 5):
        sparsity.advance(student, step)
        for layer in sparsity.sparse.layers.values():
            mask = layer.parametrizations.weight[1].forward_mask
            dense = trained_weight(layer) + layer.parametrizations.weight[0](0 * mask.float())
            if step == 2:  # at the stop weights were zeroed since
                assert mask.equal(topk_mask(dense.detach(), density=0.5))
            assert (layer.weight[~mask] == 0).all()
    assert sparsity.history[1]["churn"] > 0.1


def test_growth_by_gradient_beside_adapters_is_refused_before_training():
    qat = QuantizationAwareTraining(
        scheme="W8A16", group_size=32, adapter_rank=4, calibration_samples=4
    )
    with pytest.raises(BadInput, match=r"7 of the 7 masked ones(.|\n)*adapter_rank=0"):
        fit("rigl", also=[qat])


class DropGradients(L.Callback):
    """Leaves optimizer step number `step` without gradients, as a guard that skips it does."""

    def __init__(self, step):
        self.step = step

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step + 1 == self.step:
            for parameter in pl_module.parameters():
                parameter.grad = None


@pytest.mark.parametrize("budget", ["erk", "global"])
def test_an_update_after_a_step_without_gradients_exchanges_nothing(budget):
    _, sparsity, _ = fit("rigl", budget=budget, also=[DropGradients(2)])
    churns = {record["step"]: record["churn"] for record in sparsity.history}
    assert churns[2] == 0.0 and churns[4] > 0.0
    assert sparsity.history[-1]["density"] == pytest.approx(0.5, abs=1e-3)


def test_a_gradient_that_is_no_number_grows_nothing():
    student = tiny_llama(layers=1)
    sparse = SparseLayers(
        choose_layers(student), SparsitySettings(density=0.5, growth="gradient", every=2, stop=9)
    )
    sparse.advance(1)  # opens the dense backward for step 2
    student(**tiny_batch()).loss.backward()
    bad, *sound = sparse.layers
    trained_weight(sparse.layers[bad]).grad[0, 0] = torch.nan
    record = sparse.advance(2, gradients=sparse.take_dense_gradients(2))
    assert record["layers"][bad]["churn"] == 0.0
    assert all(record["layers"][name]["churn"] > 0.0 for name in sound)


def test_frozen_layers_are_left_out_and_nothing_but_frozen_ones_is_refused():
    student = tiny_llama(layers=1)
    student.model.layers[0].mlp.requires_grad_(False)
    callback = DynamicSparsity(growth="gradient", every=2, stop=9)
    callback.attach(student)
    assert len(callback.sparse.layers) == 4
    assert not any("mlp" in name for name in callback.sparse.layers)
    with pytest.raises(BadInput, match="all 7 layers to mask are frozen"):
        DynamicSparsity(every=2, stop=9).attach(tiny_llama(layers=1).requires_grad_(False))


@pytest.mark.parametrize("way", ["set", "rigl"])
def test_exchange_happens_and_explores(way):
    _, sparsity, _ = fit(way)
    churns = [record["churn"] for record in sparsity.history]
    assert churns[1] > 0 and churns[2] > 0
    assert sparsity.history[-1]["explored"] > sparsity.history[-1]["density"]


def test_static_masks_do_not_move():
    _, sparsity, _ = fit("static")
    assert [record["churn"] for record in sparsity.history] == [0.0] * 4


def test_accumulation_counts_optimizer_steps():
    _, sparsity, _ = fit("set", accumulate=3)
    assert [record["step"] for record in sparsity.history] == [0, 2, 4, 5]


@pytest.mark.parametrize("cut", [2, 3])
@pytest.mark.parametrize("way", ["set", "rigl", "sr-ste", "top-kast", "ac-dc"])
def test_resume_is_bit_exact(way, cut, tmp_path):
    check_resume(tmp_path, way=way, cut=cut)


def test_resume_is_bit_exact_with_accumulation_and_mixed_precision(tmp_path):
    check_resume(tmp_path, way="rigl", cut=3, accumulate=3, precision="bf16-mixed")


def check_resume(folder, *, way, cut, **settings):
    whole, sparsity, _ = fit(way, **settings)
    _, _, trainer = fit(way, until=cut, **settings)
    trainer.save_checkpoint(folder / "cut.ckpt")
    resumed, again, _ = fit(way, ckpt=folder / "cut.ckpt", **settings)
    expected, state = whole.state_dict(), resumed.state_dict()
    assert [key for key in expected if not state[key].equal(expected[key])] == []
    assert again.history == sparsity.history


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"stop": 5}, [0, 2, 4, 5]), ({"stop": 0.5, "every": 0.2}, [0, 1, 2, 3])],
)
def test_schedules_count_steps_or_fractions_of_the_run(settings, steps):
    _, sparsity, _ = fit("set", **settings)
    assert [record["step"] for record in sparsity.history] == steps


def test_a_schedule_longer_than_the_run_is_refused_before_it_starts():
    with pytest.raises(BadInput, match="stop=9, but the run ends after 6"):
        fit("gradual", stop=9)


def test_the_report_tells_what_was_asked_and_reached():
    _, sparsity, _ = fit("rigl", density=0.25)
    (facts,) = sparsity.report().values()
    assert facts["target_density"] == 0.25
    assert facts["density"] == pytest.approx(0.25, abs=1e-3)
    assert {"churn", "explored", "dead_neurons"} <= facts["history"][-1].keys()
    assert len(facts["history"][-1]["layers"]) == 7


def test_checkpoints_hold_one_bit_a_weight(tmp_path):
    module, _, trainer = fit("set", until=1)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    packed = {k: v for k, v in state.items() if k.endswith("forward_mask")}
    assert len(packed) == len(masks_of(module)) == 7
    assert all(v.dtype == torch.uint8 for v in packed.values())
    assert sum(v.numel() for v in packed.values()) * 8 == sum(
        m.forward_mask.numel() for m in masks_of(module).values()
    )


def test_the_head_stays_dense_and_names_choose_layers():
    module, _, _ = fit("set", until=1, include="*mlp*", exclude="*down_proj")
    assert [n.rpartition(".")[2] for n in masks_of(module)] == ["gate_proj", "up_proj"]
    assert all(isinstance(m, MaskWeight) for m in masks_of(module).values())


def test_widths_that_do_not_divide_are_refused_with_every_layer():
    callback = DynamicSparsity(pattern="7x7", density=0.5)
    with pytest.raises(UnsupportedScheme, match="7 of 7 layers"):
        callback.attach(tiny_llama(layers=1))


def test_two_ranks_with_equal_weights_and_gradients_make_equal_masks():
    masks = []
    for _rank in range(2):
        torch.manual_seed(_rank)  # ranks differ in their random state
        callback = DynamicSparsity(growth="random", every=1, stop=10, density=0.3)
        student = tiny_llama(layers=1)
        callback.attach(student)
        for step in (1, 2, 3):
            callback.advance(student, step)
        masks.append([m.forward_mask for m in callback.sparse.masks.values()])
    assert all(a.equal(b) for a, b in zip(*masks, strict=True))


class Gradients(L.Callback):
    """What the optimizer was given in the first step: its square sums by use."""

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        masks = masks_of(pl_module)
        pairs = [
            (trained_weight(layer).grad, masks[name].forward_mask)
            for name, layer in transformed_layers(pl_module.student)
        ]
        if trainer.global_step == 1 and pairs[0][0] is not None:
            self.used = sum(float(gradient[mask].square().sum()) for gradient, mask in pairs)
            self.unused = sum(float(gradient[~mask].square().sum()) for gradient, mask in pairs)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_pull_is_neither_clipped_nor_multiplied_by_accumulation(accumulate):
    given = {}
    for decay in (0.0, 100.0):
        given[decay] = Gradients()
        fit("sr-ste", decay=decay, also=[given[decay]], until=2, accumulate=accumulate, every=4)
    assert given[100.0].used == pytest.approx(given[0.0].used)  # clipped by the loss's norm alone
    weights = [
        trained_weight(layer).detach() for _, layer in transformed_layers(fit(until=1)[0].student)
    ]
    largest = 100.0**2 * sum(float(w.square().sum()) for w in weights)
    assert 0.01 * largest < given[100.0].unused < 1.2 * largest  # once, not three times (9x)
