"""Whatever lies at a path is opened and measured alike, or refused with the reason."""

import pytest
import torch

from compress.errors import BadInput
from compress.evaluate.engines import Engine, EngineMissing, require
from compress.evaluate.models import EngineModel, onnx_file, open_model
from compress.evaluate.quality import compare, token_loss
from compress.export.write import export
from compress.quantize.prepare import prepare
from tests.tiny import tiny_batch, tiny_llama


class Elsewhere(Engine):
    """A model in 'another runtime': it gives logits alone."""

    name, version, generates = "elsewhere", "0", True

    def __init__(self, model):
        self.model, self.vocab_size = model.eval(), model.config.vocab_size

    @torch.inference_mode()
    def forward(self, tokens_BL, mask_BL=None):
        return self.model(input_ids=tokens_BL, attention_mask=mask_BL).logits


@pytest.fixture
def dense(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path / "dense")
    return model, tmp_path / "dense"


def test_a_dense_checkpoint_measures_as_the_model_does(dense):
    model, path = dense
    opened = open_model(path)
    assert (opened.kind, opened.task) == ("dense", "causal_lm")
    assert opened.bytes == (path / "model.safetensors").stat().st_size
    assert token_loss(opened.module, [tiny_batch()]) == token_loss(model, [tiny_batch()])


def test_a_compressed_checkpoint_measures_as_the_fake_quantised_model(tmp_path):
    student = tiny_llama()
    prepare(student, scheme="W8A8")
    path = export(student, target="transformers", path=tmp_path / "out", dtype="float32").path
    opened = open_model(path)
    assert opened.kind == "compressed"
    both = compare(opened.module, student, [tiny_batch()])
    assert both.kl == pytest.approx(0.0, abs=1e-9)
    assert both.model.loss == pytest.approx(both.baseline.loss, abs=1e-6)


def test_a_model_of_another_runtime_is_compared_by_its_logits():
    model, other = tiny_llama(), tiny_llama(seed=1)
    ours = compare(EngineModel(Elsewhere(model)), other, [tiny_batch()])
    theirs = compare(model, other, [tiny_batch()])
    assert ours.kl == pytest.approx(theirs.kl, rel=1e-5)
    assert ours.agreement == theirs.agreement
    assert ours.model.loss == pytest.approx(theirs.model.loss, rel=1e-6)


def test_an_engine_without_cache_generates_greedily():
    model, asked = tiny_llama(), []
    tokens = tiny_batch(rows=2, length=5)["input_ids"]
    ours = Elsewhere(model).generate(tokens, new_tokens=4, on_token=lambda: asked.append(1))
    theirs = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=4,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    assert torch.equal(ours, theirs[:, 5:])
    assert len(asked) == 4


def test_a_damaged_file_is_refused(dense):
    _, path = dense
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BadInput, match="does not load"):
        open_model(path)


def test_a_missing_tensor_is_refused(dense):
    from safetensors.torch import load_file, save_file

    _, path = dense
    state = load_file(path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"not whole: .*up_proj"):
        open_model(path)


def test_missing_and_damaged_configs_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no config\.json"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="is damaged"):
        open_model(tmp_path)


def test_an_onnx_file_is_found_in_its_folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    assert onnx_file(tmp_path) == onnx_file(tmp_path / "model.onnx") == tmp_path / "model.onnx"
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert onnx_file(tmp_path) is None


def test_a_missing_engine_comes_with_its_command(monkeypatch):
    from compress.evaluate import engines

    monkeypatch.setitem(engines.REQUIRED, "tvm", ("no_such_module", "pip install apache-tvm"))
    with pytest.raises(EngineMissing, match="pip install apache-tvm"):
        require("tvm")
    with pytest.raises(BadInput, match="Did you mean 'onnxruntime'"):
        require("onnxruntme")
