"""An exported program holds the trained codes, scales and zeros, and needs PyTorch alone."""

import copy
import json
import zipfile
from pathlib import Path

import pytest
import torch

from compress.errors import ExportMismatch, UnsupportedScheme
from compress.export import write
from compress.export.card import program_lines
from compress.export.codes import stored_codes
from compress.export.gate import gate
from compress.export.plan import collect_plan
from compress.export.pt2 import PROGRAM_FILE, held_tensors
from compress.export.pt2_archive import open_program
from compress.quantize import prepare
from tests.export.onnx_models import quantised, tiny_bert
from tests.export.pt2_models import sparse_int4, written
from tests.export.test_trained_schemes import trained
from tests.tiny import tiny_llama

DOWN = "model.layers.0.mlp.down_proj"
STATIC = {"activations": "static"}
CASES = [
    ("W8A8", {}, "float32"),
    ("W8A8", STATIC, "float32"),
    ("W4A16", {}, "bfloat16"),
    ("W3A16", {"embeddings": "W8A16:32"}, "float32"),
]


@pytest.mark.parametrize(("scheme", "settings", "dtype"), CASES)
def test_trained_codes_scales_and_logits_come_back(scheme, settings, dtype, tmp_path):
    student = trained(scheme, dtype=getattr(torch, dtype), **settings)
    result = written(student, tmp_path / "out", dtype=dtype)
    assert result.verification.quantized_layers == 7 + ("embeddings" in settings)
    assert result.verification.max_abs_logit_diff <= 1e-5


def test_two_of_four_zeros_survive():
    student, result, _ = sparse_int4()
    plan = collect_plan(student)
    held = held_tensors(open_program(result.path / PROGRAM_FILE), plan, student)
    parts = {key: held[f"{DOWN}.{key}"] for key in ("weight_packed", "weight_shape")}
    codes = stored_codes(parts, plan.layer(DOWN).weights)
    assert int((codes.unflatten(-1, (-1, 4)) != 0).sum(-1).max()) == 2
    assert json.loads((result.path / "sparsity.json").read_text())["pattern"] == "2:4"


def test_codes_are_stored_as_integers_and_the_file_is_smaller():
    student, result, _ = sparse_int4()
    held = held_tensors(open_program(result.path / PROGRAM_FILE), collect_plan(student), student)
    layer = dict(student.named_modules())[DOWN]
    # eight codes to a word
    assert held[f"{DOWN}.weight_packed"].dtype == torch.int32
    assert held[f"{DOWN}.weight_packed"].numel() * 8 == layer.weight.numel()
    with zipfile.ZipFile(result.path / PROGRAM_FILE) as archive:
        stored = sum(i.file_size for i in archive.infolist() if "/data/weights/w" in i.filename)
    assert stored < 0.5 * sum(p.numel() * 4 for p in tiny_llama(layers=1, hidden=64).parameters())


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 40)])
def test_batch_and_sequence_are_dynamic(batch, length):
    run = open_program(sparse_int4()[1].path / PROGRAM_FILE).module()
    tokens = torch.ones(batch, length, dtype=torch.int64)
    assert run(input_ids=tokens, attention_mask=tokens).shape == (batch, length, 128)


def test_a_longer_sequence_than_the_models_is_refused():
    run = open_program(sparse_int4()[1].path / PROGRAM_FILE).module()
    tokens = torch.ones(1, 65, dtype=torch.int64)
    with pytest.raises((RuntimeError, ValueError, AssertionError), match="64"):
        run(input_ids=tokens, attention_mask=tokens)


def test_the_file_holds_no_path_and_no_pickle():
    with zipfile.ZipFile(sparse_int4()[1].path / PROGRAM_FILE) as archive:
        read = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert read["data/sample_inputs/model.pt"] == b""
    assert str(Path(__file__).parents[2]).encode() not in read["models/model.json"]
    assert b"site-packages" not in read["models/model.json"]


def test_the_card_tells_the_three_lines_that_run_it():
    card = (sparse_int4()[1].path / "README.md").read_text()
    assert program_lines("PATH") in card
    assert program_lines("PATH").count("\n") == 2


def test_tied_embeddings_are_held_once(tmp_path):
    student = tiny_llama(layers=1, hidden=64, tie_word_embeddings=True)
    prepare(student, scheme="W8A8")
    result = written(student.eval(), tmp_path / "out", dtype="float32")
    state = open_program(result.path / PROGRAM_FILE).state_dict
    head, table = state["model.lm_head.weight"], state["model.model.embed_tokens.weight"]
    assert head.data_ptr() == table.data_ptr()


def test_layers_of_different_shapes_may_be_exported(tmp_path):
    student = tiny_llama(layers=2, hidden=64)
    narrow = student.model.layers[1].mlp
    narrow.gate_proj = torch.nn.Linear(64, 96, bias=False)
    narrow.up_proj = torch.nn.Linear(64, 96, bias=False)
    narrow.down_proj = torch.nn.Linear(96, 64, bias=False)
    prepare(student, scheme="W4A16", group_size=32)
    result = written(student.eval(), tmp_path / "out", dtype="float32")
    assert result.verification.quantized_layers == 14


def test_an_encoders_dropout_is_gone(tmp_path):
    student = quantised(tiny_bert(), scheme="W8A8", **STATIC)
    assert student.config.hidden_dropout_prob > 0
    result = written(student, tmp_path / "out", dtype="float32")
    program = open_program(result.path / PROGRAM_FILE)
    assert not any("dropout" in str(n.target) for n in program.graph.nodes if not n.kwargs)
    assert result.verification.max_abs_logit_diff < 0.01


def test_the_export_leaves_the_student_as_it_was():
    student, before = sparse_int4()[0], copy.deepcopy(sparse_int4()[0].state_dict())
    assert len(collect_plan(student).quantized) == len(collect_plan(student).sparse) == 7
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("key", "said"),
    [("weight_packed", "codes differ from weight and scale"), ("weight_scale", "weight_scale")],
)
def test_a_program_that_is_not_what_was_trained_is_refused(key, said, tmp_path, monkeypatch):
    honest = write.WRITERS["pt2"]

    def dishonest(student, plan, folder, *, dtype):
        files = honest(student, plan, folder, dtype=dtype)
        program = open_program(files[0])
        held = program.state_dict[f"model.{DOWN}.{key}"]
        held += 1
        program._example_inputs, program._guards_code = None, []
        torch.export.save(program, files[0])
        return files

    monkeypatch.setitem(write.WRITERS, "pt2", dishonest)
    with pytest.raises(ExportMismatch, match=f"{DOWN}: .*{said}"):
        written(sparse_int4()[0], tmp_path / "out", dtype="float32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ({"scheme": "FP8"}, "integer codes, not FP8 or FP4"),
        ({"scheme": "NVFP4"}, "integer codes, not FP8 or FP4"),
        ({"scheme": "FP8_DYNAMIC"}, "integer codes, not FP8 or FP4"),
        ({"scheme": "W8A8", "kv_cache": "fp8"}, "no key-value cache"),
    ],
)
def test_the_gate_lists_every_layer_that_the_program_cannot_hold(scheme, said):
    student = tiny_llama(layers=1, hidden=64)
    prepare(student, **scheme)
    with pytest.raises(UnsupportedScheme, match=said) as refusal:
        gate(student, target="pt2")
    if "kv_cache" not in scheme:
        assert str(refusal.value).count("model.layers.0.") == 7
    assert "target=vllm" in str(refusal.value)


def test_zeros_asked_for_speed_are_refused_and_integers_are_told_to_be_no_faster():
    student = sparse_int4()[0]
    with pytest.raises(UnsupportedScheme, match="do not make pt2 faster"):
        gate(student, target="pt2", purpose="speed")
    assert any("dense model's speed" in note for note in gate(student, target="pt2").notes)
