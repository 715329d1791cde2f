"""FP8 and NVFP4 in ModelOpt's layout hold what was trained; other schemes are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from compress.errors import UnsupportedScheme
from compress.export.modelopt import inline_config, quant_config
from compress.export.plan import collect_plan
from compress.export.write import export
from compress.quantize import prepare
from tests.export.fakes import quantized
from tests.tiny import tiny_batch, tiny_llama

UP = "model.layers.0.mlp.up_proj"


def exported(name, tmp_path):
    student = quantized(tiny_llama(), name)
    result = export(
        student,
        target="modelopt",
        path=tmp_path / "out",
        example_batch=tiny_batch(),
        dtype="float32",
    )
    config = json.loads((result.path / "hf_quant_config.json").read_text())
    return student, load_file(result.path / "model.safetensors"), config["quantization"]


def test_fp8_holds_float8_weights_and_scalar_scales(tmp_path):
    _, state, config = exported("FP8", tmp_path)
    assert state[f"{UP}.weight"].dtype == torch.float8_e4m3fn
    assert state[f"{UP}.weight_scale"].shape == state[f"{UP}.input_scale"].shape == ()
    assert config["quant_algo"] == "FP8"
    assert config["exclude_modules"] == ["lm_head"]


def test_nvfp4_holds_two_codes_a_byte_and_the_reciprocal_of_the_global_scale(tmp_path):
    student, state, config = exported("NVFP4", tmp_path)
    layer = student.model.layers[0].mlp.up_proj
    trained = layer.parametrizations.weight[0].global_scale
    assert state[f"{UP}.weight"].dtype == torch.uint8
    assert state[f"{UP}.weight"].shape == (64, 16)
    assert state[f"{UP}.weight_scale"].dtype == torch.float8_e4m3fn
    assert torch.equal(state[f"{UP}.weight_scale_2"], (1.0 / trained).reshape(()))
    assert config["group_size"] == 16


def test_vllm_reads_from_the_config_that_the_cache_is_fp8():
    student = tiny_llama()
    prepare(student, scheme="FP8", kv_cache="fp8")
    plan = collect_plan(student, trained=False)
    scheme = inline_config(plan)["kv_cache_scheme"]
    assert scheme == {"num_bits": 8, "type": "float", "dynamic": False}
    assert quant_config(plan)["quantization"]["kv_cache_quant_algo"] == "FP8"
    plain = quantized(tiny_llama(), "FP8")
    assert "kv_cache_scheme" not in inline_config(collect_plan(plain))


def test_other_schemes_are_refused(tmp_path):
    with pytest.raises(UnsupportedScheme, match="scheme=FP8 or scheme=NVFP4"):
        exported("W8A8", tmp_path)
    assert list(tmp_path.iterdir()) == []
