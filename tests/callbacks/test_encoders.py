"""BERT-family models: classifiers by features and logits, embeddings without labels, the export."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from compress.callbacks import FeatureDistillation, LogitsDistillation, QuantizationAwareTraining
from compress.errors import BadInput
from compress.module import CompressionModule
from compress.students import student_from_teacher
from compress.teachers.local import LocalTeacher
from tests.callbacks.distill_support import Curve, fit
from tests.tiny import tiny_batch


def bert(kind=BertForSequenceClassification, *, layers=2, hidden=32, seed=0):
    torch.manual_seed(seed)
    return kind(
        BertConfig(
            vocab_size=128, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
            intermediate_size=64, num_labels=3, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def rows(count=32):
    tokens = tiny_batch(rows=count)["input_ids"]
    mask = torch.ones_like(tokens)
    mask[::2, 12:] = 0
    return [
        {"input_ids": t, "attention_mask": m, "labels": torch.tensor(i % 3)}
        for i, (t, m) in enumerate(zip(tokens, mask, strict=True))
    ]


def distilled(callbacks, *, task="classification", student=None, teacher=None, steps=25):
    module = CompressionModule(
        student=student or bert(layers=1), teacher=LocalTeacher(teacher or bert(seed=1), task=task),
        task=task, label_weight=0.0, learning_rate=5e-3, warmup_steps=1, final_share=1.0,
    )  # fmt: skip
    return fit(callbacks, steps=steps, module=module, rows=rows())


@pytest.mark.parametrize("loss", ["mse", "attention", "relations"])
def test_an_encoders_features_come_nearer(loss):
    curve = Curve("train/features")
    distilled([FeatureDistillation(loss=loss), curve])
    assert curve.values[-1] < 0.8 * curve.values[0]


def test_embeddings_learn_without_labels():
    curve = Curve("train/features")
    callback = FeatureDistillation(pairs={"embedding": "embedding"}, loss="cosine")
    distilled(
        [callback, curve], task="embedding", student=bert(BertModel, layers=1),
        teacher=bert(BertModel, seed=1),
    )  # fmt: skip
    assert curve.values[-1] < 0.7 * curve.values[0]


def test_embeddings_of_unequal_width_learn_how_sequences_relate():
    curve = Curve("train/features")
    callback = FeatureDistillation(pairs={"embedding": "embedding"}, loss="relations")
    distilled(
        [callback, curve], task="embedding", student=bert(BertModel, layers=1),
        teacher=bert(BertModel, hidden=64, seed=1), steps=40,
    )  # fmt: skip
    assert curve.values[-1] < 0.85 * curve.values[0]


def test_the_distance_of_a_teacher_to_itself_is_nothing():
    from compress.distill.embeddings import embedding_distance

    model, batch = bert(BertModel), {"input_ids": tiny_batch()["input_ids"]}
    same = LocalTeacher(bert(BertModel), task="embedding")
    assert embedding_distance(model.eval(), same, batch).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(BadInput, match="there is none"):
        embedding_distance(model, None, batch)
    with pytest.raises(BadInput, match="needs a teacher"):
        CompressionModule(student=model, task="embedding")


def test_a_halved_quantised_classifier_is_what_was_trained(tmp_path):
    from compress.export.write import export

    strong = bert(layers=4, seed=1)
    _, module = distilled(
        [
            QuantizationAwareTraining(scheme="W8A8", exclude="*classifier,*pooler*"),
            LogitsDistillation(),
            FeatureDistillation(weight=0.5, balance_to="logits"),
        ],
        student=student_from_teacher(strong, layers=2), teacher=strong, steps=4,
    )  # fmt: skip
    result = export(module.student, target="transformers", path=tmp_path / "export")
    assert result.verification.max_abs_logit_diff < 1e-5
    assert result.verification.quantized_layers == 2 * 6
