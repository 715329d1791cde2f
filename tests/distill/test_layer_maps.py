from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from compress.distill.build_features import attention_map_of, build_feature_loss
from compress.distill.layer_maps import layer_names, map_layers, mapped_pairs, output_width
from compress.errors import BadInput, UnsupportedModel
from compress.students import student_from_teacher
from compress.teachers.local import LocalTeacher
from tests.tiny import tiny_llama


def bert(layers=4):
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=64,
        )
    )


@settings(deadline=None)
@given(teacher=st.integers(1, 40), data=st.data())
def test_maps_rise_and_each_student_layer_has_one_teacher_layer(teacher, data):
    student = data.draw(st.integers(1, teacher))
    for kind in ("uniform", "last", "skip"):
        indices = map_layers(kind, student=student, teacher=teacher)
        assert len(indices) == student and indices == sorted(set(indices))
        assert indices[0] >= 0 and indices[-1] < teacher
    assert map_layers("uniform", student=student, teacher=teacher)[-1] == teacher - 1
    assert map_layers("skip", student=student, teacher=teacher)[0] == 0


def test_a_deeper_student_has_no_map():
    with pytest.raises(BadInput, match="not 2 for 3"):
        map_layers("uniform", student=3, teacher=2)


def test_decoders_and_encoders_name_their_layers():
    assert layer_names(tiny_llama(layers=2)) == ["model.layers.0", "model.layers.1"]
    assert layer_names(bert(2)) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]


def test_modules_inside_layers_are_paired_too():
    pairs = mapped_pairs("last", bert(1), bert(3), within=["attention.self.query"])
    assert pairs == {
        "bert.encoder.layer.0.attention.self.query": "bert.encoder.layer.2.attention.self.query"
    }


def test_attention_maps_are_found_inside_layers():
    assert attention_map_of(tiny_llama()) == "self_attn:1"
    assert attention_map_of(bert()) == "attention.self:1"


def test_widths_come_from_modules_and_the_configuration():
    model = tiny_llama(hidden=32)
    assert output_width(model, "model.layers.0") == 32
    assert output_width(model, "model.layers.0.mlp.up_proj") == 64
    assert output_width(model, "model.layers.0.self_attn.k_proj") == 16
    with pytest.raises(BadInput, match=r"layers\.7"):
        output_width(model, "model.layers.7")


def test_an_encoder_loses_layers_and_its_configuration_says_so():
    student = student_from_teacher(bert(4), layers=2)
    assert student.config.num_hidden_layers == 2 == len(student.bert.encoder.layer)
    assert [layer.attention.self.layer_idx for layer in student.bert.encoder.layer] == [0, 1]


def test_a_model_without_layers_is_refused():
    model = tiny_llama()
    model.config.num_hidden_layers = 9
    with pytest.raises(UnsupportedModel, match="no list of its 9 layers"):
        layer_names(model)


def test_stored_features_must_be_named():
    stored = SimpleNamespace(features={"model.norm": 32})
    found = build_feature_loss(tiny_llama(), stored, kind="mse", pairs={"model.norm": "model.norm"})
    assert found.pairs == {"model.norm": "model.norm"}
    with pytest.raises(BadInput, match="name the stored features"):
        build_feature_loss(tiny_llama(), stored, kind="mse", pairs=None)
    with pytest.raises(BadInput, match=r"'model\.nrm'"):
        build_feature_loss(tiny_llama(), stored, kind="mse", pairs={"model.norm": "model.nrm"})


def test_attention_maps_run_eagerly_in_both_models():
    student, teacher = bert(1), LocalTeacher(bert(2), task="classification")
    loss = build_feature_loss(student, teacher, kind="attention", pairs=None)
    name = "bert.encoder.layer.{}.attention.self:1"
    assert loss.pairs == {name.format(0): name.format(1)}
    assert student.config._attn_implementation == "eager"
