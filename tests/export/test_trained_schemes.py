"""Every scheme, trained by the real quantisers, comes out of its file as it was trained."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.errors import ExportMismatch, UnsupportedScheme
from compress.export import write
from compress.export.gate import gate
from compress.export.write import export
from compress.quantize import SCHEMES, prepare, start
from compress.quantize.adapters import adapt
from tests.tiny import TinyData, tiny_batch, tiny_llama

STATIC = [("W8A8", {"activations": "static"}), ("FP8_DYNAMIC", {"activations": "static"})]
STARTS = [("W4A8", {"init": "gptq"}), ("W8A8", {"init": "smoothquant"})]
MORE = [
    ("W8A8", {"kv_cache": "fp8"}),
    ("W4A16", {"embeddings": "W8A16:32"}),
    ("W8A8", {"overrides": {"*mlp*": "W4A16:32", "*o_proj": None}}),
    ("W4A16", {"adapter_rank": 4}),
    ("W2A16", {"backward": "straight_through"}),
    ("W4A8", {"scales": "tracked"}),
]
CASES = [(scheme, {}) for scheme in SCHEMES] + STATIC + STARTS + MORE


def trained(scheme, *, dtype=torch.float32, layers=1, **settings):
    """A student after a few steps, so that no scale is where it started."""
    model = tiny_llama(layers=layers, hidden=128)
    if scheme.startswith(("W4", "W3", "W2")):
        settings.setdefault("group_size", 32)
    if scheme == "FP8_BLOCK":  # the key and value heads are narrower than a block
        settings.setdefault("exclude", "*k_proj,*v_proj,*q_proj")
    if dtype != torch.float32 and scheme.startswith(("W4", "W3", "W2", "W8A16")):
        settings["scale_dtype"] = dtype
    init, rank = settings.pop("init", "rtn"), settings.pop("adapter_rank", 0)
    layers = prepare(model, scheme=scheme, **settings)
    if rank:
        adapt(model, layers, rank=rank)
    start(model, TinyData(), init=init, samples=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for seed in range(3):
        model(**tiny_batch(seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def exported(student, path, **settings):
    gate(student, target="transformers")
    return export(student, target="transformers", path=path, example_batch=tiny_batch(), **settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("scheme", "settings"), CASES)
def test_trained_codes_scales_and_logits_come_back(scheme, settings, dtype, tmp_path):
    student = trained(scheme, dtype=getattr(torch, dtype), **settings)
    result = exported(student, tmp_path / "out", dtype=dtype)
    less = {"FP8_BLOCK": 3}.get(scheme, 0) + ("overrides" in settings) - ("embeddings" in settings)
    assert result.verification.quantized_layers == 7 - less
    assert result.verification.max_abs_logit_diff <= 1e-5 * 10


def test_a_cache_scale_that_differs_is_refused(tmp_path, monkeypatch):
    honest = write.WRITERS["transformers"]

    def dishonest(student, plan, folder, *, dtype):
        files = honest(student, plan, folder, dtype=dtype)
        state = load_file(files[0])
        state["model.layers.0.self_attn.k_scale"] *= 1.5
        save_file(state, files[0], metadata={"format": "pt"})
        return files

    monkeypatch.setitem(write.WRITERS, "transformers", dishonest)
    with pytest.raises(ExportMismatch, match=r"self_attn\.k_scale: the cache's scale differs"):
        exported(trained("W8A8", kv_cache="fp8"), tmp_path / "out")


def test_vllm_is_asked_for_an_fp8_cache_and_refuses_embeddings(tmp_path):
    result = export(trained("W8A8", kv_cache="fp8"), target="vllm", path=tmp_path / "out")
    config = json.loads((result.path / "config.json").read_text())["quantization_config"]
    assert config["kv_cache_scheme"]["num_bits"] == 8
    with pytest.raises(UnsupportedScheme, match=r"linear layers alone[^\n]*\n  model.embed_tokens"):
        gate(trained("W4A16", embeddings="W8A16:32"), target="vllm")


def test_tied_embeddings_are_not_quantised():
    with pytest.raises(UnsupportedScheme, match="tie_word_embeddings=false"):
        prepare(tiny_llama(tie_word_embeddings=True), embeddings="W8A16:32")


@pytest.mark.parametrize(("scheme", "said"), [("W8A8", "token ids"), ("W4A16:32", "packed table")])
def test_embeddings_take_eight_bit_weights_alone(scheme, said):
    with pytest.raises(UnsupportedScheme, match=said):
        prepare(tiny_llama(), embeddings=scheme)


@pytest.mark.parametrize("scheme", ["FP8", "NVFP4"])
def test_trained_modelopt_kinds_come_back_too(scheme, tmp_path):
    result = export(trained(scheme), target="modelopt", path=tmp_path / "out", dtype="bfloat16")
    assert result.verification.codes_equal
    assert (result.path / "hf_quant_config.json").exists()
