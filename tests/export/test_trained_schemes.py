"""Every scheme, trained by the real quantisers, comes out of its file as it was trained."""

import pytest
import torch

from compress.export.gate import gate
from compress.export.write import export
from compress.quantize import SCHEMES, prepare, start
from tests.tiny import TinyData, tiny_batch, tiny_llama

STATIC = [("W8A8", {"activations": "static"}), ("FP8_DYNAMIC", {"activations": "static"})]
CASES = [(scheme, {}) for scheme in SCHEMES] + STATIC


def trained(scheme, *, dtype=torch.float32, layers=1, **settings):
    """A student after a few steps, so that no scale is where it started."""
    model = tiny_llama(layers=layers, hidden=128)
    if scheme.startswith(("W4", "W3", "W2")):
        settings.setdefault("group_size", 32)
    if scheme == "FP8_BLOCK":  # the key and value heads are narrower than a block
        settings.setdefault("exclude", "*k_proj,*v_proj,*q_proj")
    if dtype != torch.float32 and scheme.startswith(("W4", "W3", "W2", "W8A16")):
        settings["scale_dtype"] = dtype
    prepare(model, scheme=scheme, **settings)
    start(model, TinyData(), samples=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for seed in range(3):
        model(**tiny_batch(seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def exported(student, path, **settings):
    gate(student, target="transformers")
    return export(
        student, target="transformers", path=path, example_batch=tiny_batch(), **settings
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("scheme", "settings"), CASES)
def test_trained_codes_scales_and_logits_come_back(scheme, settings, dtype, tmp_path):
    student = trained(scheme, dtype=getattr(torch, dtype), **settings)
    result = exported(student, tmp_path / "out", dtype=dtype)
    assert result.verification.quantized_layers == (4 if scheme == "FP8_BLOCK" else 7)
    assert result.verification.max_abs_logit_diff <= 1e-5 * 10
