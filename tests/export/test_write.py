"""Exports equal what was trained, appear whole or not at all, and leave the student alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.errors import BadInput, ExportMismatch
from compress.export import write
from compress.export.card import CardFacts
from compress.export.write import export
from tests.export.fakes import FakeAdapter, FakeMask, quantized
from tests.tiny import tiny_batch, tiny_llama

INT = ["W8A8", "W4A16", "W8A16", "W3A16", "W2A16", "W4A8"]
FLOAT = ["FP8_DYNAMIC", "FP8"]
FP4 = ["NVFP4A16", "NVFP4", "MXFP4A16"]


def exported(student, tmp_path, **settings):
    settings = {"target": "transformers", "example_batch": tiny_batch(), **settings}
    return export(student, path=tmp_path / "out", **settings)


@pytest.mark.parametrize("name", INT + FLOAT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reloaded_logits_equal_the_trained_ones(name, dtype, tmp_path):
    student = quantized(tiny_llama(), name, dtype=dtype)
    result = exported(student, tmp_path, dtype=dtype)
    assert result.verification.max_abs_logit_diff <= 1e-5
    assert result.verification.quantized_layers == 14
    assert result.scheme == name


@pytest.mark.parametrize("name", FP4)
def test_fp4_codes_and_scales_are_exact(name, tmp_path):
    result = exported(quantized(tiny_llama(), name), tmp_path, dtype="bfloat16")
    assert result.verification.codes_equal
    assert result.scheme == name


def test_without_transforms_the_checkpoint_is_plain_and_dense(tmp_path):
    student = tiny_llama()
    result = exported(student, tmp_path)
    config = json.loads((result.path / "config.json").read_text())
    assert "quantization_config" not in config
    assert result.scheme == "dense"
    state = load_file(result.path / "model.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())


def test_tied_embeddings_are_written_once(tmp_path):
    student = quantized(tiny_llama(tie_word_embeddings=True), "W8A8")
    result = exported(student, tmp_path, target="vllm")
    names = load_file(result.path / "model.safetensors")
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" in names


def test_zeros_of_masks_survive_in_the_file(tmp_path):
    student = quantized(tiny_llama(), "W8A8", masked=True)
    result = exported(student, tmp_path)
    state = load_file(result.path / "model.safetensors")
    layer = student.model.layers[0].mlp.up_proj
    mask = layer.parametrizations.weight[0].mask
    assert (state["model.layers.0.mlp.up_proj.weight"][~mask] == 0).all()
    manifest = json.loads((result.path / "sparsity.json").read_text())
    assert manifest["layers"]["model.layers.0.mlp.up_proj"]["density"] == pytest.approx(
        float(mask.float().mean())
    )
    assert "sparsity_config" not in (result.path / "config.json").read_text()
    assert "no runtime" in (result.path / "README.md").read_text()


def test_masked_and_adapted_dense_layers_are_written_as_used(tmp_path):
    student = tiny_llama()
    layer = student.model.layers[0].mlp.up_proj
    from compress.transforms import attach_transform

    attach_transform(layer, FakeAdapter(layer.weight))
    attach_transform(layer, FakeMask(layer.weight))
    result = exported(student, tmp_path, dtype="bfloat16")
    state = load_file(result.path / "model.safetensors")
    assert torch.equal(state["model.layers.0.mlp.up_proj.weight"], layer.weight.bfloat16())


def test_the_student_is_left_as_it_was(tmp_path):
    student = quantized(tiny_llama(), "W4A16").train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    exported(student, tmp_path, dtype="bfloat16")
    after = student.state_dict()
    assert student.training
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_the_report_entry_is_json(tmp_path):
    result = exported(quantized(tiny_llama(), "W8A8"), tmp_path)
    entry = json.loads(json.dumps(result.entry(relative_to=tmp_path)))
    assert entry["path"] == "out"
    assert entry["verified"] is True
    assert entry["bytes"] == (result.path / "model.safetensors").stat().st_size


def tamper(monkeypatch, change):
    """Let the writer write, then change the file before it is verified."""
    honest = write.WRITERS["transformers"]

    def dishonest(student, plan, folder, *, dtype):
        files = honest(student, plan, folder, dtype=dtype)
        state = load_file(files[0])
        change(state)
        save_file(state, files[0], metadata={"format": "pt"})
        return files

    monkeypatch.setitem(write.WRITERS, "transformers", dishonest)


UP = "model.layers.1.mlp.up_proj"


def flip_code(state):
    state[f"{UP}.weight"][0, 0] ^= 1


def stretch_scale(state):
    state[f"{UP}.weight_scale"][3] *= 1.01


def drop_norm(state):
    del state["model.norm.weight"]


def shift_norm(state):
    state["model.norm.weight"][0] += 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip_code, rf"{UP}: 1 of 2048 codes differ"),
        (stretch_scale, rf"{UP}: weight_scale differs"),
        (drop_norm, "model.norm.weight: missing"),
        (shift_norm, "model.norm.weight: differs by up to 0.5"),
    ],
)
def test_a_file_that_differs_is_refused_and_nothing_stays(change, said, tmp_path, monkeypatch):
    tamper(monkeypatch, change)
    with pytest.raises(ExportMismatch, match=said):
        exported(quantized(tiny_llama(), "W8A8"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_masked_weight_that_lives_in_the_file_is_refused(tmp_path, monkeypatch):
    student = tiny_llama()
    layer = student.model.layers[1].mlp.up_proj
    from compress.transforms import attach_transform

    attach_transform(layer, FakeMask(layer.weight))
    mask = layer.parametrizations.weight[0].mask

    def revive(state):
        state[f"{UP}.weight"][~mask] = 1.0

    tamper(monkeypatch, revive)
    with pytest.raises(ExportMismatch, match=rf"{UP}: \d+ masked weights are not zero"):
        exported(student, tmp_path)


def test_an_older_export_survives_a_failed_one(tmp_path, monkeypatch):
    exported(tiny_llama(), tmp_path)
    before = (tmp_path / "out" / "config.json").read_text()
    tamper(monkeypatch, flip_code)
    with pytest.raises(ExportMismatch):
        exported(quantized(tiny_llama(), "W8A8"), tmp_path)
    assert (tmp_path / "out" / "config.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_older_export_is_replaced_by_a_new_one(tmp_path):
    exported(tiny_llama(), tmp_path)
    exported(quantized(tiny_llama(), "W8A8"), tmp_path)
    assert "quantization_config" in (tmp_path / "out" / "config.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_large_checkpoints_are_sharded(tmp_path, monkeypatch):
    honest = write.WRITERS["transformers"]
    monkeypatch.setitem(
        write.WRITERS, "transformers", lambda *a, **k: honest(*a, **k, shard_bytes=20_000)
    )
    result = exported(quantized(tiny_llama(), "W8A8"), tmp_path)
    index = json.loads((result.path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert result.bytes == sum(p.stat().st_size for p in result.path.glob("*.safetensors"))


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(BadInput, match="float32, bfloat16, float16"):
        exported(tiny_llama(), tmp_path, dtype="int8")


def test_the_card_tells_what_was_given(tmp_path):
    facts = CardFacts(
        base_model="org/base", licence="apache-2.0", data="stories", quality={"loss": 1.25}
    )
    result = exported(quantized(tiny_llama(), "W8A8"), tmp_path, target="vllm", card=facts)
    text = (result.path / "README.md").read_text()
    for said in ("org/base", "apache-2.0", "stories", "1.25", "W8A8", "from vllm import LLM"):
        assert said in text
