import pytest
import torch

from compress.callbacks import FeatureDistillation, LogitsDistillation
from compress.errors import BadInput
from compress.models import trace_causal_lm
from tests.callbacks.distill_support import Curve, assert_resume_is_bit_exact, fit, teacher
from tests.tiny import tiny_batch


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl"])
def test_student_nears_the_teacher_without_labels(divergence):
    curve = Curve("train/logits")
    fit([LogitsDistillation(divergence=divergence), curve], steps=60, label_weight=0.0)
    assert curve.values[-1] < 0.5 * curve.values[0]


def test_a_student_that_is_the_teacher_has_no_loss():
    from compress.module import CompressionModule

    same = teacher()
    student = teacher().model.requires_grad_(True)
    curve = Curve("train/logits")
    module = CompressionModule(student=student, teacher=same, label_weight=0.0, learning_rate=0.0)
    fit([LogitsDistillation(temperature=2.0), curve], steps=2, module=module)
    assert max(map(abs, curve.values)) < 1e-5


def test_resume_is_bit_exact_under_a_temperature_schedule(tmp_path):
    assert_resume_is_bit_exact(
        lambda: LogitsDistillation(temperature=4.0, final_temperature=1.0, temperature_steps=8),
        tmp_path,
    )


def test_no_weight_asks_nothing_of_the_teacher():
    class Refusing:
        vocab_size = 128

        def signal(self, batch, want):
            raise AssertionError("called")

    from compress.module import CompressionModule
    from tests.tiny import tiny_llama

    module = CompressionModule(student=tiny_llama(), teacher=Refusing())
    fit([LogitsDistillation(teacher_weight=0.0)], steps=2, module=module)


def test_two_of_a_kind_need_two_names():
    with pytest.raises(RuntimeError, match="more than one stateful callback"):  # Lightning's own
        fit([LogitsDistillation(), LogitsDistillation()], steps=1)
    with pytest.raises(BadInput, match="two loss terms are called 'features'"):
        fit([LogitsDistillation(name="features"), FeatureDistillation()], steps=1)
    curve = Curve("train/sharp")
    fit([LogitsDistillation(), LogitsDistillation(name="sharp", temperature=0.5), curve], steps=1)
    assert curve.values[0] > 0


def test_several_teachers_teach_at_once(tmp_path):
    teacher(layers=2).model.save_pretrained(tmp_path / "second")
    curve = Curve("train/second")
    second = LogitsDistillation(teacher=str(tmp_path / "second"), name="second")
    fit([LogitsDistillation(), second, curve], steps=8)
    assert 0 < curve.values[-1] < curve.values[0]
    with pytest.raises(BadInput, match="nowhere"):
        fit([LogitsDistillation(teacher=str(tmp_path / "nowhere"))], steps=1)


@pytest.mark.parametrize("settings", [{"top_k": 5}, {"top_k": 5, "vocab_size": 100}])
def test_a_cached_teacher_obeys_the_settings_as_the_live_one_does(settings, tmp_path):
    from compress.contract import Step
    from compress.distill.chunked import head_losses
    from compress.teachers.cached import CachedTeacher, Identity, write_cache
    from tests.tiny import tiny_llama

    batch, student, live = tiny_batch(), tiny_llama(), teacher()
    identity = Identity(teacher="t", tokenizer="k", data="d")
    write_cache(live, [batch], tmp_path / "cache", identity=identity, top_k=20)
    callback, values = LogitsDistillation(teacher_weight=1.0, tail="renormalize", **settings), []
    for each in (live, CachedTeacher(tmp_path / "cache")):
        step = Step(
            batch=batch, student=trace_causal_lm(student, batch), teacher=each,
            want=callback.want(), number=0,
        )  # fmt: skip
        values.append(head_losses(step, dict(callback.losses(step)))[0])
    torch.testing.assert_close(values[1], values[0], rtol=0.02, atol=0)


def test_instruction_data_teach_answers_alone(tmp_path):
    import json

    from compress.data import instruction
    from compress.module import CompressionModule
    from compress.teachers.local import LocalTeacher
    from tests.tiny import tiny_llama

    lines = [{"prompt": f"add {n} and 1", "response": f"it is {n + 1}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = instruction(
        path=str(tmp_path / "rows.jsonl"), vocab_size=270, sequence_length=32,
        validation_share=0.2, test_share=0.0, cache_dir=tmp_path / "cache",
    )  # fmt: skip
    size = len(data.tokenizer)
    module = CompressionModule(
        student=tiny_llama(vocab_size=size),
        teacher=LocalTeacher(tiny_llama(vocab_size=size, seed=1)),
    )  # fmt: skip
    curve = Curve("train/logits")
    fit([LogitsDistillation(), curve], steps=6, module=module, rows=data.train)
    assert min(curve.values) > 0
    for row in data.train:
        learned = row["labels"] != -100
        assert "it is" in data.tokenizer.decode(row["input_ids"][learned])
        assert "add" not in data.tokenizer.decode(row["input_ids"][learned])


def test_prompt_tokens_do_not_count():
    """Labels of -100 take a position out of the teacher's term as out of the labels'."""
    from compress.contract import Step, Want
    from compress.distill.build import LogitSettings, teacher_term
    from compress.distill.chunked import head_losses
    from tests.tiny import tiny_llama

    batch, student = tiny_batch(), tiny_llama()
    batch["labels"][:, :8] = -100
    step = Step(
        batch=batch, student=trace_causal_lm(student, batch), teacher=teacher(),
        want=Want(logits=True), number=0,
    )  # fmt: skip
    term = teacher_term(step, LogitSettings())
    step.student.hidden_BLH.retain_grad()
    head_losses(step, {"logits": term})[0].backward()
    moved = step.student.hidden_BLH.grad.abs().sum(-1) > 0
    assert not moved[:, :7].any() and moved[:, 7:15].all() and not moved[:, 15].any()


def test_a_classifier_learns_from_a_classifier():
    from transformers import BertConfig, BertForSequenceClassification

    from compress.module import CompressionModule
    from compress.teachers.local import LocalTeacher

    def bert(seed, layers):
        torch.manual_seed(seed)
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=128,
                hidden_size=32,
                num_hidden_layers=layers,
                num_attention_heads=4,
                intermediate_size=64,
                num_labels=3,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )

    strong = bert(1, 2)
    with torch.no_grad():
        strong.classifier.weight.mul_(30)
    module = CompressionModule(
        student=bert(0, 1), teacher=LocalTeacher(strong, task="classification"),
        task="classification", label_weight=0.0, learning_rate=5e-3, warmup_steps=1,
    )  # fmt: skip
    tokens = tiny_batch(rows=32)["input_ids"]
    rows = [{"input_ids": row, "labels": torch.tensor(i % 3)} for i, row in enumerate(tokens)]
    curve = Curve("train/logits")
    fit([LogitsDistillation(), curve], steps=40, module=module, rows=rows)
    assert curve.values[-1] < 0.5 * curve.values[0]
