"""A TensorRT folder holds the trained scales and zeros, its commands, and nothing untrue."""

import re
from itertools import pairwise

import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import LlamaConfig

from compress.errors import BadInput, ExportMismatch, UnsupportedScheme
from compress.export import write
from compress.export.gate import gate
from compress.export.onnx_layers import LAYERS_KEY
from compress.export.onnx_verify import compare_layers
from compress.export.plan import collect_plan
from compress.export.tensorrt import largest_input, profiles
from compress.export.tensorrt_calibration import cache_text, read_cache
from compress.export.tensorrt_lint import Graph, load_graph
from compress.export.write import export
from compress.transforms import attach_transform
from tests.export.fakes import FakeMask
from tests.export.onnx_models import exported, quantised, student_of
from tests.tiny import tiny_llama

Q, K, V = (f"model.layers.0.self_attn.{x}_proj" for x in "qkv")


def product_names(graph):
    return [
        {p.key: p.value for p in node.metadata_props}[LAYERS_KEY].split(",")
        for node in graph.model.graph.node
        if any(p.key == LAYERS_KEY for p in node.metadata_props)
    ]


def test_layers_that_read_one_value_become_one_product():
    names = product_names(load_graph(exported("decoder", "int8").path / "model.onnx"))
    assert [Q, K, V] in names
    assert ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"] in names
    assert len(names) == 4


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_every_quantised_product_has_a_rounded_input_of_its_own(kind):
    graph = load_graph(exported(kind, "int8").path / "model.onnx")
    inputs = [n.input[0] for n in graph.model.graph.node if any(n.metadata_props)]
    inputs = [name for name in inputs if name.endswith("/rounded")]
    assert len(inputs) == len(set(inputs)) == len(product_names(graph))


def test_onnxruntime_turns_every_product_into_an_integer_one(tmp_path):
    import onnxruntime

    for scheme, kernel in (("int8", "MatMulIntegerToFloat"), ("int4", "MatMulNBits")):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        path = exported("decoder", scheme).path / "model.onnx"
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        kinds = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
        assert kinds.count(kernel) == 4
        assert "DequantizeLinear" not in kinds


def test_scales_that_differ_are_not_fused():
    student = quantised(tiny_llama(layers=1, hidden=64), scheme="W8A8", activations="static")
    with torch.no_grad():
        layer = student.model.layers[0].self_attn.k_proj
        layer.input_quantizer.log_step = torch.nn.Parameter(torch.tensor([0.5]))
    plan = collect_plan(student)
    from compress.export.onnx_layers import _agreeing, read_layers

    layers = read_layers(student, plan)[:3]
    parts = _agreeing([(None, layer) for layer in layers])
    assert [[layer.names[0] for _, layer in part] for part in parts] == [[Q, V], [K]]


def damaged(change):
    """The int8 decoder's graph after `change(initializers by name)`."""
    model = onnx.load(exported("decoder", "int8").path / "model.onnx")
    tensors = {t.name: t for t in model.graph.initializer}
    for name, array in change({n: numpy_helper.to_array(t) for n, t in tensors.items()}).items():
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    return Graph(model)


@pytest.mark.parametrize(
    ("constant", "message"),
    [("weight", "1 of 8192 codes differ"), ("weight_scale", "1 of 128 weight scales differ"),
     ("input_scale", "input scale")],
)  # fmt: skip
def test_a_changed_constant_is_found_and_its_layers_named(constant, message):
    def change(arrays):
        changed = arrays[f"{Q}/{constant}"].copy()
        changed.flat[0] += 1
        return {f"{Q}/{constant}": changed}

    student = student_of("decoder", "int8")
    with pytest.raises(ExportMismatch) as refusal:
        compare_layers(student, damaged(change), collect_plan(student))
    assert message in str(refusal.value)
    assert ", ".join((Q, K, V)) in str(refusal.value)


def test_a_missing_product_is_found():
    student = student_of("decoder", "int8")
    graph = load_graph(exported("decoder", "int8").path / "model.onnx")
    for node in graph.model.graph.node:
        del node.metadata_props[:]
    with pytest.raises(ExportMismatch, match="o_proj: no product computes it"):
        compare_layers(student, graph, collect_plan(student))


def test_an_export_that_computes_something_else_leaves_nothing(tmp_path, monkeypatch):
    from compress.export import tensorrt

    honest = tensorrt.read_layers

    def lying(student, plan):
        first, *others = honest(student, plan)
        return [type(first)(**{**vars(first), "scale": first.scale * 2}), *others]

    monkeypatch.setattr(tensorrt, "read_layers", lying)
    with pytest.raises(ExportMismatch, match="weight scales differ"):
        export(
            student_of("decoder", "int8"), target="tensorrt", path=tmp_path / "out",
            dtype="float32",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def two_in_four(weight):
    """A mask that keeps the first two of every four weights of a row."""
    mask = FakeMask(weight, pattern="2:4")
    mask.mask = (torch.arange(weight.shape[1]) % 4 < 2).expand_as(weight).clone()
    return mask


def test_zeros_of_two_in_four_stay_and_the_sparse_command_is_on(tmp_path):
    student = tiny_llama(layers=1, hidden=64)
    for layer in student.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not student.lm_head:
            attach_transform(layer, two_in_four(layer.weight))
    student = quantised(student, scheme="W8A8", activations="static")
    result = export(student, target="tensorrt", path=tmp_path / "out", dtype="float32",
                    calibration=True)  # fmt: skip
    assert result.verification.zeros_equal
    graph = load_graph(result.path / "model.onnx")
    codes_IO = graph.array(f"{Q}/weight")
    assert (codes_IO.T.reshape(-1, 4) != 0).sum(1).max() == 2
    script = (result.path / "trtexec.sh").read_text()
    assert "\ntrtexec --onnx=model.onnx --stronglyTyped" in script
    assert "\n  --sparsity=enable" in script
    assert "minShapes=input_ids:1x1,attention_mask:1x1" in script
    calibrated_ranges(student, result)


def calibrated_ranges(student, result):
    scales = read_cache((result.path / "implicit" / "calibration.cache").read_text())
    model = onnx.load(result.path / "implicit" / "model.onnx")
    assert not {n.op_type for n in model.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    found = {out for node in model.graph.node for out in node.output}
    assert scales.keys() <= found
    trained = {float(layer.tensors["input_scale"]) for layer in collect_plan(student).quantized}
    assert {float(s) for s in scales.values()} == trained


def test_without_two_in_four_the_sparse_command_is_a_comment():
    script = (exported("decoder", "int8").path / "trtexec.sh").read_text()
    assert "\n# trtexec" in script
    assert "no layer is 2:4" in script


def test_an_engine_is_built_for_what_is_asked_else_for_what_a_gpu_holds():
    long = LlamaConfig(max_position_embeddings=131072)
    assert largest_input(long) == (8, 2048)
    assert largest_input(LlamaConfig(max_position_embeddings=512)) == (8, 512)
    assert largest_input(long, batch=2, length=100_000) == (2, 100_000)
    with pytest.raises(BadInput, match="length=513, but the model takes 512 tokens"):
        largest_input(LlamaConfig(max_position_embeddings=512), length=513)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (4, 50), (8, 2048)])
def test_each_profile_grows_from_least_to_usual_to_most(batch, length):
    sizes = [
        [int(number) for number in re.findall(r"[:x](\d+)", words)]
        for words in profiles(batch, length)
    ]
    assert sizes[-1] == [batch, length] * 2
    assert all(a <= b for less, more in pairwise(sizes) for a, b in zip(less, more, strict=True))


def test_a_cache_reads_back_and_a_damaged_one_is_told():
    scales = {"a:b": 0.125, "model/x": 3.5}
    assert read_cache(cache_text(scales)) == scales
    with pytest.raises(BadInput, match="line 2"):
        read_cache("TRT-100000-EntropyCalibration2\na: zz")
    with pytest.raises(BadInput, match="begins with"):
        read_cache("")


def test_calibration_without_static_int8_is_refused(tmp_path):
    with pytest.raises(BadInput, match="static INT8"):
        export(student_of("decoder", "fp8"), target="tensorrt", path=tmp_path / "out",
               dtype="float32", calibration=True)  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ({"scheme": "W8A8"}, ["scale for each token", "activations=static", "q_proj"]),
        ({"scheme": "FP8_DYNAMIC"}, ["scale for each token"]),
        ({"scheme": "W4A16", "group_size": 32}, ["blocks of 64 or 128, not 32"]),
        ({"scheme": "W4A16", "group_size": -1}, ["not whole rows"]),
        ({"scheme": "W8A16", "group_size": 64}, ["INT4, not in 8 bits", "scheme=W8A8"]),
        ({"scheme": "NVFP4"}, ["target=modelopt"]),
        ({"scheme": "W4A8", "group_size": 64}, ["scale for each token"]),
    ],
)
def test_the_gate_refuses_what_tensorrt_cannot_hold_and_says_the_way_out(scheme, said):
    student = tiny_llama(layers=1, hidden=64)
    from compress.quantize import prepare

    prepare(student, **scheme)
    with pytest.raises(UnsupportedScheme) as refusal:
        gate(student, target="tensorrt")
    for words in said:
        assert words in str(refusal.value)


def test_the_gate_lets_through_before_training_what_it_lets_through_after():
    from compress.quantize import prepare

    student = tiny_llama(layers=1, hidden=64)
    prepare(student, scheme="W8A8", activations="static")
    assert gate(student, target="tensorrt").scheme == "W8A8"


def test_half_precision_around_fp32_scales_is_refused():
    with pytest.raises(UnsupportedScheme, match="export_dtype=float32"):
        gate(student_of("decoder", "int8"), target="tensorrt", dtype=torch.float16)


def test_layers_of_different_shapes_may_be_exported():
    student = tiny_llama(layers=2, hidden=64)
    student.model.layers[1].mlp.up_proj = torch.nn.Linear(64, 96, bias=False)
    gate(student, target="tensorrt")


def test_tensorrt_is_a_target():
    assert "tensorrt" in write.WRITERS
