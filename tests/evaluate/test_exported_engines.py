"""Engines that compile a graph answer as the model does, and refuse what they cannot read."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.errors import BadInput
from compress.evaluate.engines import EngineSettings, load_engine, vllm_host
from compress.evaluate.engines.onnxruntime import products_saturate
from compress.evaluate.models import task_of
from compress.export.onnx_program import Logits
from compress.export.write import export
from tests.export.onnx_models import exported, student_of, tiny_bert, tiny_encoder
from tests.export.pt2_models import sparse_int4
from tests.tiny import tiny_llama

SLOW = pytest.mark.nightly


def tokens_and_mask(rows=2, length=11):
    tokens = torch.randint(0, 128, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[1:, length // 2 :] = 0
    return tokens, mask


def saved(model, folder):
    model.eval().save_pretrained(folder)
    return model


def gap(engine, model):
    tokens, mask = tokens_and_mask()
    with torch.no_grad():
        told = Logits(model)(tokens, mask)
    return float((engine.forward(tokens, mask) - told).abs().max())


def test_onnxruntime_opens_an_export_at_full_speed_and_answers_like_the_student():
    engine = load_engine("onnxruntime", exported("decoder", "int8").path, EngineSettings())
    assert (engine.vocab_size, engine.generates) == (128, True)
    assert gap(engine, student_of("decoder", "int8")) < 0.01


def test_onnxruntime_knows_a_classifier():
    engine = load_engine("onnxruntime", exported("encoder", "int8").path, EngineSettings())
    assert not engine.generates
    assert gap(engine, student_of("encoder", "int8")) < 0.01


def test_onnxruntime_continues_greedily():
    path = exported("decoder", "int8").path / "model.onnx"
    engine = load_engine("onnxruntime", path, EngineSettings())
    tokens, steps = tokens_and_mask()[0], []
    written = engine.generate(tokens, new_tokens=3, on_token=lambda: steps.append(1))
    assert written.shape == (2, 3)
    assert len(steps) == 3
    assert torch.equal(written[:, 0], engine.forward(tokens)[:, -1].argmax(-1))


def test_onnxruntime_exports_a_dense_checkpoint_on_the_spot(tmp_path):
    model = saved(tiny_llama(layers=1), tmp_path)
    assert gap(load_engine("onnxruntime", tmp_path, EngineSettings()), model) < 1e-5


def test_eager_runs_a_program_and_answers_like_the_student():
    student, result, _ = sparse_int4()
    engine = load_engine("eager", result.path, EngineSettings())
    assert (engine.vocab_size, engine.generates, engine.cached) == (128, True, False)
    assert gap(engine, student) < 1e-5


def test_eager_runs_a_dense_checkpoint_beside_it(tmp_path):
    model = saved(tiny_llama(layers=1), tmp_path)
    assert gap(load_engine("eager", tmp_path, EngineSettings()), model) < 1e-5


@pytest.mark.parametrize("make", [tiny_bert, tiny_encoder])
@pytest.mark.parametrize(
    "engine", ["transformers", "eager", "onnxruntime", pytest.param("inductor", marks=SLOW)]
)
def test_a_model_whose_pass_is_the_answer_writes_nothing(engine, make, tmp_path):
    model = saved(make(), tmp_path)
    opened = load_engine(engine, tmp_path, EngineSettings())
    assert not opened.generates
    assert gap(opened, model) < 1e-5


@pytest.mark.parametrize(
    "name",
    ["LlamaForCausalLM", "GPT2LMHeadModel", "BertModel", "BertForSequenceClassification", ""],
)
def test_vllms_host_takes_a_model_for_what_the_other_engines_do(name):
    assert vllm_host.task_of(name) == task_of({"architectures": [name]})


def test_an_encoder_of_a_program_gives_its_hidden_states(tmp_path):
    model = tiny_encoder().eval()
    folder = export(model, target="pt2", path=tmp_path / "out", dtype="float32").path
    opened = load_engine("eager", folder, EngineSettings())
    assert not opened.generates
    assert gap(opened, model) < 1e-5


@pytest.mark.parametrize("engine", ["eager", "onnxruntime", "inductor"])
def test_a_head_that_the_checkpoint_lacks_is_not_made_up(engine, tmp_path):
    saved(tiny_llama(layers=1), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"is not whole: 1 tensors are missing.*lm_head"):
        load_engine(engine, tmp_path, EngineSettings())


@pytest.mark.nightly
def test_inductor_compiles_a_program_of_codes():
    student, result, _ = sparse_int4()
    assert gap(load_engine("inductor", result.path, EngineSettings()), student) < 1e-4


def test_transformers_sends_a_program_to_its_engines():
    with pytest.raises(BadInput, match="engine=eager or engine=inductor"):
        load_engine("transformers", sparse_int4()[1].path, EngineSettings())


@pytest.mark.nightly
@pytest.mark.parametrize("make", [tiny_llama, tiny_bert])
def test_inductor_compiles_a_dense_checkpoint(tmp_path, make):
    model = saved(make(layers=1), tmp_path)
    assert gap(load_engine("inductor", tmp_path, EngineSettings()), model) < 1e-5


@pytest.mark.nightly
def test_tvm_compiles_a_dense_checkpoint(tmp_path):
    pytest.importorskip("tvm", reason="pip install 'compress-lm[tvm]'")
    model = saved(tiny_llama(layers=1), tmp_path)
    assert gap(load_engine("tvm", tmp_path, EngineSettings()), model) < 1e-5


@pytest.mark.parametrize("engine", ["onnxruntime", "eager", "inductor"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"device": "tpu"}, "device=tpu"),
        ({"dtype": "bfloat16"}, "dtype=bfloat16"),
        ({"options": {"speed": 9}}, "no option speed"),
    ],
)
def test_settings_without_a_meaning_are_refused(tmp_path, engine, settings, said):
    saved(tiny_llama(layers=1), tmp_path)
    with pytest.raises(BadInput, match=said):
        load_engine(engine, tmp_path, EngineSettings(**settings))


@pytest.mark.parametrize(
    ("engine", "target"), [("onnxruntime", "tensorrt"), ("eager", "pt2"), ("inductor", "pt2")]
)
def test_a_quantised_checkpoint_is_sent_to_the_right_export(tmp_path, engine, target):
    saved(tiny_llama(layers=1), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {"format": "int-quantized"}}))
    with pytest.raises(BadInput, match=f"target={target}"):
        load_engine(engine, tmp_path, EngineSettings())


def test_what_is_not_there_or_damaged_is_named(tmp_path):
    with pytest.raises(BadInput, match="absent"):
        load_engine("onnxruntime", tmp_path / "absent", EngineSettings())
    with pytest.raises(BadInput, match=r"config\.json"):
        load_engine("onnxruntime", tmp_path, EngineSettings())
    saved(tiny_llama(layers=1), tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BadInput, match="does not open in onnxruntime"):
        load_engine("onnxruntime", tmp_path, EngineSettings())
    (tmp_path / "other.onnx").write_bytes(b"")
    with pytest.raises(BadInput, match="several ONNX files"):
        load_engine("onnxruntime", tmp_path, EngineSettings())


def test_a_compiled_package_runs_only_where_it_is_trusted(tmp_path):
    saved(tiny_llama(layers=1), tmp_path)
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("model/data/aotinductor/model/other.wrapper.so", b"another machine's")
    for settings, said in [({}, "native code"), ({"trust_package": True}, "on this machine")]:
        with pytest.raises(BadInput, match=said):
            load_engine("inductor", tmp_path, EngineSettings(options=settings))


@pytest.mark.parametrize("engine", ["eager", "inductor"])
def test_a_damaged_program_is_told(tmp_path, engine):
    saved(tiny_llama(layers=1), tmp_path)
    (tmp_path / "model.pt2").write_bytes(b"no program")
    with pytest.raises(BadInput, match=r"model\.pt2 is damaged"):
        load_engine(engine, tmp_path, EngineSettings())


def test_products_are_added_without_saturating_only_where_the_processor_needs_it(tmp_path):
    """The setting takes 1.4x the time where it changes nothing."""
    told = tmp_path / "cpuinfo"
    for flags, saturates in (("avx2", True), ("avx512f avx512_vnni", False), ("avx_vnni", False)):
        told.write_text(f"flags\t: fpu {flags}\n")
        assert products_saturate(told) is saturates
    assert products_saturate(tmp_path / "absent")
