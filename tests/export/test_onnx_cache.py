"""A decoder exported with its cache writes token by token what it writes without."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compress.errors import BadInput, ExportMismatch, UnsupportedModel
from compress.evaluate.engines import Engine, EngineSettings, load_engine
from compress.export.onnx_cache import cache_shape, positions
from compress.export.onnx_verify import compare_outputs
from compress.export.tensorrt import profiles, shapes
from compress.export.tensorrt_lint import Graph, lint, load_graph
from compress.export.write import export
from compress.scripts.export import checked
from tests.export.onnx_models import exported, student_of, tiny_bert
from tests.tiny import tiny_batch, tiny_llama


@functools.cache
def place():
    return tempfile.TemporaryDirectory()


@functools.cache
def cached():
    batch = {"input_ids": tiny_batch()["input_ids"]}
    return export(
        student_of("decoder", "int8"), target="tensorrt", path=Path(place().name) / "out",
        example_batch=batch, dtype="float32", cache=True,
    )  # fmt: skip


def engine():
    return load_engine("onnxruntime", cached().path, EngineSettings())


def prompts(rows=2, length=9):
    return torch.randint(0, 128, (rows, length), generator=torch.Generator().manual_seed(1))


def test_steps_over_the_cache_equal_the_fake_quantised_student():
    assert cached().verification.max_abs_logit_diff < 0.01
    assert cached().verification.quantized_layers == 7


def test_keys_and_values_go_in_and_come_out_under_the_usual_names():
    graph = load_graph(cached().path / "model.onnx").model.graph
    names = [value.name for value in (*graph.input, *graph.output)]
    assert names == [
        "input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value",
        "logits", "present.0.key", "present.0.value",
    ]  # fmt: skip
    dims = [d.dim_param or d.dim_value for d in graph.output[1].type.tensor_type.shape.dim]
    assert dims == ["batch", 2, "total", 16]


def test_tensorrts_linter_finds_nothing_and_would_find_a_fixed_past():
    graph = load_graph(cached().path / "model.onnx")
    assert lint(graph) == []
    model = onnx.load(cached().path / "model.onnx")
    model.graph.input[2].type.tensor_type.shape.dim[2].dim_value = 4
    assert [f.node for f in lint(Graph(model))] == ["past_key_values.0.key"]


def test_greedy_tokens_are_those_of_whole_prefixes_and_one_a_step():
    model, steps = engine(), []
    tokens = prompts()
    written = model.generate(tokens, new_tokens=6, on_token=lambda: steps.append(1))
    anew = Engine.generate(model, tokens, new_tokens=6, on_token=lambda: None)
    assert model.cached and torch.equal(written, anew) and len(steps) == 6
    passes = []
    run = model.session.run
    model.session = type("Counting", (), {"run": lambda _, names, feed: passes.append(
        feed["input_ids"].shape[1]) or run(names, feed)})()  # fmt: skip
    model.generate(tokens, new_tokens=3, on_token=lambda: None)
    assert passes == [9, 1, 1]


def test_logits_without_a_past_are_those_of_the_export_without_a_cache():
    alone = load_engine("onnxruntime", exported("decoder", "int8").path, EngineSettings())
    assert not alone.cached
    assert (engine().forward(prompts()) - alone.forward(prompts())).abs().max() < 0.01


def test_padding_on_the_left_changes_no_answer():
    tokens = prompts(rows=1)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), tokens], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    alone, beside = engine().forward(tokens), engine().forward(padded, mask)[:, 3:]
    assert (alone - beside).abs().max() < 0.01
    assert positions(mask, 4).tolist() == [[5, 6, 7, 8]]


def test_a_file_whose_cache_is_wrong_is_found_out(tmp_path):
    model = onnx.load(cached().path / "model.onnx")
    for node in model.graph.node:  # the past's keys are doubled
        for index, name in enumerate(node.input):
            if name == "past_key_values.0.key" and node.op_type == "Concat":
                node.input[index] = "twice"
    two = numpy_helper.from_array(np.float32(2.0), "two")
    model.graph.initializer.append(two)
    double = onnx.helper.make_node("Mul", ["past_key_values.0.key", "two"], ["twice"])
    model.graph.node.insert(0, double)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ExportMismatch, match="outputs in onnxruntime differ"):
        compare_outputs(student_of("decoder", "int8"), tmp_path / "model.onnx")


def test_models_without_such_a_cache_are_refused():
    with pytest.raises(UnsupportedModel, match="keeps no key-value cache"):
        cache_shape(tiny_bert())
    from transformers import MistralConfig, MistralForCausalLM

    sliding = MistralForCausalLM(MistralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, sliding_window=4,
    ))  # fmt: skip
    with pytest.raises(UnsupportedModel, match="layer 0: DynamicSlidingWindowLayer"):
        cache_shape(sliding)


def test_the_commands_give_the_past_a_shape():
    shape = cache_shape(tiny_llama(layers=1))
    assert shapes(2, 3, past=4, cache=shape) == (
        "input_ids:2x3,attention_mask:2x7,past_key_values.0.key:2x2x4x8,"
        "past_key_values.0.value:2x2x4x8"
    )
    script = (cached().path / "trtexec.sh").read_text()
    assert "past_key_values.0.key:1x2x0x16" in script  # the first pass has no past


@pytest.mark.parametrize("cache", [False, True])
def test_the_lines_of_the_card_run(cache):
    place = (cached() if cache else exported("decoder", "int8")).path
    lines = (place / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    held = {}
    exec(lines.replace("PATH", str(place)), held)
    assert held["logits"].shape == (1, 3, 128)
    assert [x.shape for x in held.get("present", [])] == [(1, 2, 3, 16)] * 2 * cache


def test_no_profile_reaches_over_the_models_positions():
    shape = cache_shape(tiny_llama(layers=1))
    for length in (1, 64):
        largest = [w for w in profiles(8, length, cache=shape) if w.startswith("--maxShapes=")]
        for words, new in zip(largest, (1, length), strict=True):
            assert words.endswith("=" + shapes(8, new, past=length - new, cache=shape))
            assert f"attention_mask:8x{length}," in words


def test_a_dense_checkpoint_is_given_a_cache_where_it_is_asked_for(tmp_path):
    model = tiny_llama(layers=1).eval()
    model.save_pretrained(tmp_path)
    held = load_engine("onnxruntime", tmp_path, EngineSettings(options={"cache": True}))
    with torch.no_grad():
        told = model(input_ids=prompts()).logits
    assert held.cached and (held.forward(prompts()) - told).abs().max() < 1e-5


def test_a_cache_that_a_file_lacks_is_told():
    with pytest.raises(BadInput, match="export it with cache=true"):
        load_engine(
            "onnxruntime", exported("decoder", "int8").path,
            EngineSettings(options={"cache": True}),
        )  # fmt: skip


def test_a_cache_is_asked_of_tensorrt_alone(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(BadInput, match="cache=true is for target=tensorrt"):
        checked([f"run_dir={tmp_path}", "target=vllm", "cache=true"])
    with pytest.raises(BadInput, match="Triton"):
        checked([f"run_dir={tmp_path}", "target=tensorrt", "cache=true", "bundle=true"])
