"""The programs number classes as the given models do, or refuse."""

import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from compress.data.tokenizer import train_byte_bpe
from compress.errors import BadInput
from compress.scripts import evaluate, train
from compress.scripts.lib import build
from compress.scripts.lib.config import compose
from tests.data.texts import write_lines

WORDS = {"red": "apple", "blue": "ocean", "green": "grass"}
"""Class and the word that gives it away; the alphabet has another order."""


def rows(*classes, spell=str):
    return [
        {"text": f"{WORDS[name]} {number}", "label": spell(name)}
        for number in range(40)
        for name in classes
    ]


def classifier(place, classes=tuple(WORDS), *, steps=0):
    """A checkpoint of these classes in this order, which some steps teach to tell them apart."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64, id2label=dict(enumerate(classes)),
            label2id={name: number for number, name in enumerate(classes)},
        )
    )  # fmt: skip
    tokenizer = train_byte_bpe([" ".join(WORDS.values())] * 50, vocab_size=300)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    texts = tokenizer(list(WORDS.values()), return_tensors="pt", padding=True)
    inputs = {key: texts[key] for key in ("input_ids", "attention_mask")}
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs, labels=torch.arange(3)).loss.backward()
        optimizer.step()
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def able(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("able"), steps=40)


def accuracy(model, found, tmp_path, *words):
    path, out = write_lines(tmp_path / "a.jsonl", found), tmp_path / "e.json"
    asked = [f"model={model}", "data=classification", f"data.path={path}", *words,
             "data.sequence_length=16", "resamples=50", f"out={out}"]  # fmt: skip
    assert evaluate.main(asked) == 0
    return json.loads(out.read_text())["measures"]["classification"]["model"]["accuracy"]["value"]


@pytest.mark.parametrize("classes", [tuple(WORDS), ("red", "green")])
def test_a_file_is_judged_by_the_models_order_also_where_a_class_is_missing(
    classes, able, tmp_path
):
    assert accuracy(able, rows(*classes), tmp_path) == 1.0


def test_whole_numbers_are_the_models_classes(able, tmp_path):
    assert accuracy(able, rows("red", "green", spell=list(WORDS).index), tmp_path) == 1.0


def test_other_spellings_are_refused_until_they_are_named(able, tmp_path, capsys):
    found = rows("red", "green", spell=str.upper)
    path = write_lines(tmp_path / "b.jsonl", found)
    asked = [f"model={able}", "data=classification", f"data.path={path}"]
    assert evaluate.main(asked) == 2
    said = capsys.readouterr().err
    assert "data   'GREEN', 'RED'" in said and "0 'red', 1 'blue', 2 'green'" in said
    assert evaluate.main([*asked, "data.labels=[RED,GREEN]"]) == 2
    assert "the data has 2 classes, and the model 3" in capsys.readouterr().err
    assert accuracy(able, found, tmp_path, "data.labels=[RED,BLUE,GREEN]") == 1.0


def test_two_models_of_other_orders_are_not_compared(able, tmp_path, capsys):
    other = classifier(tmp_path / "other", sorted(WORDS))
    path = write_lines(tmp_path / "a.jsonl", rows(*WORDS))
    words = [f"model={able}", f"baseline={other}", "data=classification", f"data.path={path}"]
    assert evaluate.main(words) == 2
    assert "do not number their classes alike" in capsys.readouterr().err


def training(tmp_path, *words, spell=str):
    path = write_lines(tmp_path / "t.jsonl", rows(*WORDS, spell=spell))
    return ["recipe=distill_qat", "task=classification", "data=classification",
            f"data.path={path}", "data.sequence_length=16", *words]  # fmt: skip


def data_of(words):
    config = compose(words)
    return build.build_data(config, build.build_tokenizer(config))


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_training_numbers_classes_as_the_given_model_does(who, able, tmp_path):
    words = [f"{who}=hf", f"{who}.path={able}"]
    assert data_of(training(tmp_path, *words)).labels == tuple(WORDS)
    assert data_of(training(tmp_path)).labels == tuple(sorted(WORDS))


def test_training_with_a_class_that_the_model_does_not_know_is_refused(able, tmp_path, capsys):
    words = training(tmp_path, "teacher=hf", f"teacher.path={able}", spell=str.upper)
    assert train.main([*words, f"run_dir={tmp_path / 'run'}", "verbose=false"]) == 2
    assert "are not the model's 3 classes" in capsys.readouterr().err


def test_a_student_of_another_order_than_its_teacher_is_refused(able, tmp_path):
    other = classifier(tmp_path / "other", sorted(WORDS))
    words = ["teacher=hf", f"teacher.path={able}", "student=hf", f"student.path={other}"]
    with pytest.raises(BadInput, match=r"teacher\.path and student\.path do not number"):
        data_of(training(tmp_path, *words))


def test_a_student_without_names_takes_those_that_it_is_trained_on(tmp_path):
    fresh = classifier(tmp_path / "fresh", ["LABEL_0", "LABEL_1", "LABEL_2"])
    given = ["teacher=none", "student=hf", f"student.path={fresh}"]
    config = compose(training(tmp_path, *given, "data.labels=[red,blue,green]"))
    student = build.build_student(config, None)
    build.name_classes(config, student, build.build_data(config, build.build_tokenizer(config)))
    assert student.config.id2label == dict(enumerate(WORDS))
