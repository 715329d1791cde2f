"""Each rule of TensorRT is found broken where it is broken, and all breaches are listed at once."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import ExportMismatch
from compress.export.tensorrt_lint import Graph, check_tensorrt, lint
from tests.export.onnx_models import exported

I8 = np.int8


def model_of(nodes, constants, *, opset=21, dims=("batch", "sequence", 4), domains=()):
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(dims))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None, None])],
        [c if isinstance(c, TensorProto) else numpy_helper.from_array(np.asarray(c), n)
         for n, c in constants.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def product(**changes):
    """A legal INT8 product of x (4 columns) with 3 outputs; `changes` replace its constants."""
    settings = {
        "input_scale": np.float32(0.1), "input_zero": I8(0), "codes": np.ones((4, 3), I8),
        "scale": np.ones(3, np.float32), "zero": np.zeros(3, I8), "axis": 1, "nodes": [],
    }  # fmt: skip
    unknown = changes.keys() - settings.keys() - {"opset", "dims", "domains", "block_size"}
    assert not unknown
    s = {**settings, **changes}
    where = {"axis": s["axis"], **({"block_size": s["block_size"]} if "block_size" in s else {})}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "is", "iz"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "is", "iz"], ["r"], name="round"),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["w"], name="weight", **where),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="product"),
        *s["nodes"],
    ]
    constants = {
        "is": s["input_scale"], "iz": s["input_zero"], "c": s["codes"], "s": s["scale"],
        "z": s["zero"],
    }  # fmt: skip
    extra = {k: s[k] for k in ("opset", "dims", "domains") if k in s}
    return Graph(model_of(nodes, constants, **extra))


def rules_broken(graph):
    return [str(finding) for finding in lint(graph)]


def int4(shape, fill=1):
    values = np.full(shape, fill)
    return helper.make_tensor("c", TensorProto.INT4, shape, values.flatten().tolist())


def test_a_legal_product_breaks_nothing():
    assert rules_broken(product()) == []


@pytest.mark.parametrize(
    ("changes", "node", "rule"),
    [
        ({"input_zero": I8(3)}, "quantize", "zero point is not 0"),
        ({"zero": np.array([0, 1, 0], I8)}, "weight", "zero point is not 0"),
        ({"input_zero": np.uint8(0)}, "quantize", "quantises to uint8"),
        ({"input_scale": np.float32(0.0)}, "quantize", "not positive"),
        ({"scale": np.array([1, np.nan, 1], np.float32)}, "weight", "not positive and finite"),
        ({"input_scale": np.ones(4, np.float32), "input_zero": np.zeros(4, I8)}, "quantize",
         "4 scales for an activation"),
        ({"scale": np.ones(4, np.float32), "zero": np.zeros(4, I8), "axis": 0}, "weight",
         "MatMul has its outputs on 1"),
        ({"opset": 26}, "model", "opset 26"),
        ({"dims": (1, "sequence", 4)}, "x", "batch and sequence are fixed: 1"),
        ({"domains": ("com.microsoft",)}, "model", "com.microsoft"),
        ({"codes": np.ones((64, 3), I8), "scale": np.ones((1, 3), np.float32),
          "zero": np.zeros((1, 3), I8), "axis": 0, "block_size": 64}, "weight",
         "block-wise scales are for INT4"),
        ({"nodes": [helper.make_node("Dropout", ["y"], ["d"], name="drop")]}, "drop",
         "training only"),
        ({"nodes": [helper.make_node("DynamicQuantizeLinear", ["y"], ["a", "b", "c2"],
                                     name="dyn")]}, "dyn", "no counterpart"),
        ({"nodes": [helper.make_node("Relu", ["w"], ["d"], name="relu")]}, "weight",
         "dequantises a weight for Relu"),
        ({"nodes": [helper.make_node("Relu", ["q"], ["d"], name="relu")]}, "quantize",
         "not followed by DequantizeLinear alone"),
    ],
)  # fmt: skip
def test_a_broken_rule_names_its_node(changes, node, rule):
    found = rules_broken(product(**changes))
    assert any(line.startswith(node) and rule in line for line in found), found


@pytest.mark.parametrize(("block", "legal"), [(32, False), (64, True), (128, True)])
def test_int4_weights_lie_in_blocks_of_64_or_128(block, legal):
    scale = np.ones((256 // block, 3), np.float32)
    zero = helper.make_tensor("z", TensorProto.INT4, scale.shape, [0] * scale.size)
    found = rules_broken(
        product(codes=int4((256, 3)), scale=scale, zero=zero, axis=0, block_size=block)
    )
    assert (found == []) is legal, found
    if not legal:
        assert f"not {block}" in found[0]


def test_a_computed_scale_is_found():
    nodes = [
        helper.make_node("Abs", ["half"], ["s"], name="abs"),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="round"),
    ]
    graph = Graph(model_of(nodes, {"half": np.float32(0.5), "z": I8(0)}))
    found = rules_broken(graph)
    assert [line.partition(" ")[0] for line in found] == ["quantize", "round"]


def test_a_pair_with_two_scales_is_found():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "a", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "b", "z"], ["y"], name="round"),
    ]
    graph = Graph(model_of(nodes, {"a": np.float32(0.5), "b": np.float32(0.4), "z": I8(0)}))
    assert "another scale" in rules_broken(graph)[0]


def test_all_breaches_come_in_one_error(tmp_path):
    graph = product(input_zero=I8(3), dims=(1, 2, 4), scale=-np.ones(3, np.float32))
    onnx.save(graph.model, tmp_path / "m.onnx")
    with pytest.raises(ExportMismatch) as refusal:
        check_tensorrt(tmp_path / "m.onnx")
    for said in ("quantize", "round", "weight", "x: batch", "TensorRT would refuse 4 things"):
        assert said in str(refusal.value)


def test_a_file_that_is_no_onnx_is_said_to_be_none(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(ExportMismatch, match="no valid ONNX"):
        check_tensorrt(tmp_path / "m.onnx")


@pytest.mark.parametrize("scheme", ["int8", "fp8", "int4"])
def test_what_is_exported_breaks_no_rule(scheme):
    check_tensorrt(exported("decoder", scheme).path / "model.onnx")
