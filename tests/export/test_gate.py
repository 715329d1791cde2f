"""The gate refuses before training, lists every offender and says the way out."""

import pytest
import torch

from compress.errors import UnsupportedScheme
from compress.export.gate import gate
from compress.transforms import attach_transform
from tests.export.fakes import FakeMask, FakeQuantizer, quantized, scheme_of
from tests.tiny import tiny_llama


def masked(pattern="unstructured"):
    student = tiny_llama()
    for layer in student.model.layers:
        attach_transform(layer.mlp.up_proj, FakeMask(layer.mlp.up_proj.weight, pattern=pattern))
    return student


@pytest.mark.parametrize("name", ["W8A8", "W4A16", "W4A8", "FP8_DYNAMIC", "FP8", "NVFP4", "MXFP4"])
def test_what_vllm_serves_passes(name):
    assert gate(quantized(tiny_llama(), name), target="vllm").scheme == name


def test_a_dense_student_passes():
    assert gate(tiny_llama(), target="vllm").notes == ()


def test_parts_of_a_fused_layer_need_one_scheme():
    student = quantized(tiny_llama(), "W8A8", include="*q_proj,*k_proj,*up_proj")
    with pytest.raises(UnsupportedScheme) as refusal:
        gate(student, target="vllm")
    message = str(refusal.value)
    assert "fuses q/k/v and gate/up" in message
    for name in ("layers.0.self_attn.v_proj", "layers.1.mlp.gate_proj"):
        assert name in message
    assert "o_proj" not in message


def test_group_sizes_count_as_part_of_the_scheme():
    student = quantized(tiny_llama(), "W4A16", group_size=16, include="*q_proj")
    quantized(student, "W4A16", group_size=32, include="*k_proj,*v_proj")
    with pytest.raises(UnsupportedScheme, match=r"q_proj +W4A16 group 16"):
        gate(student, target="vllm")


def test_asymmetric_weights_are_refused():
    student = tiny_llama()
    layer = student.model.layers[0].mlp.down_proj
    args = scheme_of("W4A16").weights
    attach_transform(layer, FakeQuantizer(args, layer.weight, torch.float32))
    layer.parametrizations.weight[0].args = args.model_copy(update={"symmetric": False})
    with pytest.raises(
        UnsupportedScheme, match=r"asymmetric[^\n]*\n  model.layers.0.mlp.down_proj"
    ):
        gate(student, target="vllm")


def test_every_layer_that_a_group_does_not_divide_is_listed():
    student = tiny_llama(hidden=48)  # 96 columns in down_proj, 48 elsewhere
    args = scheme_of("W4A16", group_size=32).weights
    for layer in student.model.layers:
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
            attach_transform(
                part, FakeQuantizer(scheme_of("W8A8").weights, part.weight, torch.float)
            )
            part.parametrizations.weight[0].args = args
    with pytest.raises(UnsupportedScheme) as refusal:
        gate(student, target="vllm")
    message = str(refusal.value)
    assert "group_size=32 does not divide 2 of 4 layers" in message
    assert message.count("o_proj") == 2
    assert "48 columns" in message
    assert "down_proj" not in message


def test_a_tied_head_cannot_be_quantised():
    student = quantized(tiny_llama(tie_word_embeddings=True), "W8A8", with_head=True)
    with pytest.raises(UnsupportedScheme, match="tied"):
        gate(student, target="vllm")


@pytest.mark.parametrize("name", ["W3A8", "W4A4"])
def test_schemes_without_a_kernel_are_refused_by_vllm_alone(name):
    student = quantized(tiny_llama(), name)
    with pytest.raises(UnsupportedScheme, match=name):
        gate(student, target="vllm")
    gate(student, target="transformers")


def test_sparsity_for_speed_is_refused_and_for_size_is_noted():
    with pytest.raises(UnsupportedScheme, match="do not make vllm faster"):
        gate(masked(), target="vllm", purpose="speed")
    assert "no runtime" in gate(masked(), target="vllm", purpose="size").notes[0]


def test_two_in_four_is_no_speed_for_vllm_and_the_note_says_who():
    with pytest.raises(UnsupportedScheme, match="tensorrt"):
        gate(masked("2:4"), target="vllm", purpose="speed")
    assert "TensorRT" in gate(masked("2:4"), target="vllm").notes[0]


def test_shapes_that_differ_between_layers_are_refused():
    student = tiny_llama()
    student.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 48, bias=False)
    with pytest.raises(UnsupportedScheme, match="48x32"):
        gate(student, target="vllm")


def test_int8_weights_alone_carry_a_note_about_cpus():
    assert "no CPU kernel" in gate(quantized(tiny_llama(), "W8A16"), target="vllm").notes[0]


def test_unknown_words_are_met_with_a_suggestion():
    with pytest.raises(UnsupportedScheme, match="Did you mean 'vllm'"):
        gate(tiny_llama(), target="vlm")
    with pytest.raises(UnsupportedScheme, match="Did you mean 'speed'"):
        gate(tiny_llama(), target="vllm", purpose="sped")


def test_all_offences_come_in_one_error():
    student = quantized(tiny_llama(), "W4A4", include="*q_proj")
    with pytest.raises(UnsupportedScheme) as refusal:
        gate(student, target="vllm")
    assert "fuses" in str(refusal.value)
    assert "W4A4" in str(refusal.value)
