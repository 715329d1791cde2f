"""Embeddings are looked up as int8 codes, with the trained scales, and computed as in training."""

import onnx
import pytest
import torch
from onnx import numpy_helper

from compress.errors import ExportMismatch
from compress.export.onnx_verify import compare_layers
from compress.export.plan import collect_plan
from compress.export.tensorrt_lint import Graph
from compress.export.write import export
from tests.export.onnx_models import quantised, tiny_bert
from tests.tiny import tiny_batch, tiny_llama

MODELS = {"decoder": tiny_llama, "encoder": tiny_bert}


@pytest.fixture(scope="module", params=[("decoder", 32), ("encoder", -1)])
def made(request, tmp_path_factory):
    """A decoder with groups, an encoder with a scale a row; the student and its export."""
    kind, group = request.param
    student = quantised(
        MODELS[kind](layers=1, hidden=64), scheme="W8A8", activations="static",
        embeddings=f"W8A16:{group}",
    )  # fmt: skip
    result = export(
        student, target="tensorrt", path=tmp_path_factory.mktemp(kind) / "out", dtype="float32",
        example_batch={"input_ids": tiny_batch()["input_ids"]}, calibration=True,
    )  # fmt: skip
    return student, result


def table_name(student):
    return collect_plan(student).tables[0].name


def test_the_file_holds_codes_of_one_byte_and_computes_what_was_trained(made):
    student, result = made
    name = table_name(student)
    tensors = {t.name: t for t in onnx.load(result.path / "model.onnx").graph.initializer}
    assert numpy_helper.to_array(tensors[f"{name}/weight"]).dtype == "int8"
    assert result.verification.max_abs_logit_diff < 1e-2
    assert result.verification.codes_equal


def test_a_look_up_comes_before_its_dequantisation(made):
    student, result = made
    nodes = onnx.load(result.path / "model.onnx").graph.node
    makers = {out: node for node in nodes for out in node.output}
    dequantised = next(n for n in nodes if n.name == f"{table_name(student)}/dequantized")
    source = makers[dequantised.input[0]]
    source = makers[source.input[0]] if source.op_type == "Reshape" else source
    assert source.op_type == "Gather"


def test_the_implicit_twin_has_tables_in_full_precision(made):
    _, result = made
    graph = onnx.load(result.path / "implicit" / "model.onnx").graph
    assert "DequantizeLinear" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize("constant", ["weight", "weight_scale"])
def test_a_changed_table_is_found_and_named(made, constant):
    student, result = made
    model = onnx.load(result.path / "model.onnx")
    tensors = {t.name: t for t in model.graph.initializer}
    key = f"{table_name(student)}/{constant}"
    array = numpy_helper.to_array(tensors[key]).copy()
    array.flat[3] += 1
    tensors[key].CopyFrom(numpy_helper.from_array(array, key))
    with pytest.raises(ExportMismatch, match=f"1 of {array.size} values of {key}"):
        compare_layers(student, Graph(model), collect_plan(student))


def test_a_look_up_that_lost_its_name_is_found(made):
    student, result = made
    model = onnx.load(result.path / "model.onnx")
    for node in model.graph.node:
        if node.op_type == "Gather":
            del node.metadata_props[:]
    with pytest.raises(ExportMismatch, match="no look-up reads its codes"):
        compare_layers(student, Graph(model), collect_plan(student))


def test_onnxruntime_gives_the_students_logits(made):
    import onnxruntime

    student, result = made
    tokens = tiny_batch()["input_ids"][:1, :7]
    session = onnxruntime.InferenceSession(
        str(result.path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    held = session.run(
        None, {"input_ids": tokens.numpy(), "attention_mask": torch.ones_like(tokens).numpy()}
    )[0]
    with torch.no_grad():
        told = student(input_ids=tokens).logits
    assert (torch.from_numpy(held) - told).abs().max() < 0.05 * told.abs().max()
