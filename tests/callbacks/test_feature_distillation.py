import pytest
import torch

from compress.callbacks import FeatureDistillation, LogitsDistillation
from compress.errors import BadInput
from compress.module import CompressionModule
from tests.callbacks.distill_support import Curve, assert_resume_is_bit_exact, fit, teacher
from tests.tiny import tiny_llama


@pytest.mark.parametrize(
    ("loss", "within"),
    [
        ("mse", []),
        ("cosine", []),
        ("attention_transfer", []),
        ("relations", ["self_attn.q_proj", "self_attn.v_proj"]),
    ],
)
def test_features_come_nearer_though_the_teacher_is_wider(loss, within):
    module = CompressionModule(
        student=tiny_llama(layers=2, hidden=32), teacher=teacher(layers=4, hidden=64),
        label_weight=0.0, learning_rate=5e-3, warmup_steps=1,
    )  # fmt: skip
    curve = Curve("train/features")
    callback = FeatureDistillation(loss=loss, within=within, relation_heads=2)
    fit([callback, curve], steps=30, module=module)
    assert curve.values[-1] < 0.8 * curve.values[0]


def test_projectors_train_are_saved_and_are_no_part_of_the_student():
    module = CompressionModule(
        student=tiny_llama(layers=2, hidden=32), teacher=teacher(layers=4, hidden=64),
        weight_decay=0.0, warmup_steps=1,
    )  # fmt: skip
    callback = FeatureDistillation(seed=3)
    trainer, module = fit([callback], steps=3, module=module)
    weight = module.get_submodule("features_projectors").projectors["0"].weight
    start = FeatureDistillation(seed=3)
    start.setup(trainer, CompressionModule(student=module.student, teacher=module.teacher), "fit")
    assert not torch.equal(weight, start.feature_loss.projectors["0"].weight)
    assert any("features_projectors" in key for key in module.state_dict())
    assert not any("projector" in key for key in module.student.state_dict())


def test_equal_widths_need_no_projector():
    _, module = fit([FeatureDistillation()], steps=1)
    assert not list(module.get_submodule("features_projectors").parameters())


def test_balanced_loss_is_as_large_as_its_reference():
    features, logits = Curve("train/features"), Curve("train/logits")
    callbacks = [LogitsDistillation(), FeatureDistillation(weight=0.5, balance_to="logits")]
    fit([*callbacks, features, logits], steps=12)
    assert features.values[0] == pytest.approx(0.5)  # 1 nat until both were seen
    ratios = [
        mine / other for mine, other in zip(features.values[4:], logits.values[4:], strict=True)
    ]
    assert all(0.25 < ratio < 1.0 for ratio in ratios)


def test_balancing_to_a_term_that_is_not_there_is_refused():
    with pytest.raises(BadInput, match="balance_to='logts'"):
        fit([FeatureDistillation(balance_to="logts")], steps=1)


def test_resume_is_bit_exact_with_a_running_ratio(tmp_path):
    assert_resume_is_bit_exact(lambda: FeatureDistillation(balance_to="labels"), tmp_path)


def test_pairs_by_name_reach_any_module():
    pairs = {"model.embed_tokens": "model.embed_tokens", "model.norm": "model.norm"}
    curve = Curve("train/features")
    fit([FeatureDistillation(pairs=pairs, loss="cosine"), curve], steps=20, label_weight=0.0)
    assert curve.values[-1] < curve.values[0]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"loss": "msee"}, "msee"),
        ({"layer_map": "evenly"}, "evenly"),
        ({"pairs": {"model.nrom": "model.norm"}}, "model.nrom"),
        ({"loss": "relations", "relation_heads": 5}, "relation_heads=5"),
    ],
)
def test_what_cannot_be_compared_is_refused(settings, word):
    with pytest.raises(BadInput, match=word):
        fit([FeatureDistillation(**settings)], steps=1)
