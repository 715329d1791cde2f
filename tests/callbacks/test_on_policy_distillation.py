import pytest

from compress.callbacks.on_policy_distillation import OnPolicyDistillation
from compress.errors import BadInput
from tests.callbacks.distill_support import Curve, assert_resume_is_bit_exact, fit

SMALL = {"prompt_tokens": 3, "new_tokens": 4, "share": 0.5}


def test_the_student_writes_more_and_more_like_the_teacher():
    curve = Curve("train/on_policy")
    callback = OnPolicyDistillation(**SMALL, divergence="reverse_kl", teacher_weight=1.0)
    fit([callback, curve], steps=60, label_weight=0.5)
    assert sum(curve.values[-5:]) < 0.8 * sum(curve.values[:5])


def test_resume_is_bit_exact(tmp_path):
    def make():
        return OnPolicyDistillation(**SMALL, final_share=0.0, share_steps=6)

    assert_resume_is_bit_exact(make, tmp_path, steps=6, cut=3)


def test_the_share_runs_along_its_line_and_the_teacher_sees_no_more_rows():
    callback = OnPolicyDistillation(**{**SMALL, "share": 1.0}, final_share=0.0, share_steps=0.5)
    rows = []
    written = callback.written
    callback.written = lambda step, count: rows.append(count) or written(step, count)
    fit([callback], steps=8)
    assert rows == [8, 6, 4, 2]


def test_no_weight_writes_nothing():
    callback = OnPolicyDistillation(**SMALL, teacher_weight=0.0)
    callback.written = None  # would fail
    fit([callback], steps=1)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"share": 1.5}, "share"),
        ({"new_tokens": 0}, "new_tokens"),
        ({"divergence": "kl"}, "divergence='kl'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, word):
    with pytest.raises(BadInput, match=word):
        OnPolicyDistillation(**settings)


def test_a_cached_teacher_is_refused_before_the_first_step():
    from compress.module import CompressionModule
    from compress.teachers.cached import CachedTeacher
    from tests.tiny import tiny_llama

    cached = CachedTeacher.__new__(CachedTeacher)
    module = CompressionModule(student=tiny_llama(), teacher=cached)
    with pytest.raises(BadInput, match=r"teacher\.host=local"):
        fit([OnPolicyDistillation()], steps=1, module=module)
