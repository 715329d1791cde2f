"""An ONNX export computes what the student computes, for any batch and length, and nothing else."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from compress.errors import ExportMismatch, UnsupportedModel
from compress.export.onnx_program import settle_weights, trace
from compress.export.onnx_verify import compare_outputs, open_exactly
from compress.export.plan import collect_plan
from compress.export.tensorrt import save_onnx, write_dense
from tests.export.onnx_models import SCHEMES, exported, student_of
from tests.tiny import tiny_batch, tiny_llama

PAIRS = [("decoder", "int8"), ("encoder", "int8"), ("decoder", "fp8"), ("decoder", "int4")]


@pytest.mark.parametrize(("kind", "scheme"), PAIRS)
def test_onnxruntime_computes_what_the_fake_quantised_student_computes(kind, scheme):
    result = exported(kind, scheme)
    assert result.verification.max_abs_logit_diff < 0.01
    assert result.verification.quantized_layers == len(
        collect_plan(student_of(kind, scheme)).quantized
    )


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 40)])
def test_batch_and_sequence_are_dynamic(batch, length):
    session = open_exactly(exported("decoder", "int8").path / "model.onnx")
    tokens = np.ones((batch, length), np.int64)
    (logits,) = session.run(None, {"input_ids": tokens, "attention_mask": tokens})
    assert logits.shape == (batch, length, 128)


def test_masked_positions_are_not_seen():
    session = open_exactly(exported("encoder", "int8").path / "model.onnx")
    tokens = np.arange(12, dtype=np.int64)[None] + 5
    mask = np.ones_like(tokens)
    mask[:, 8:] = 0
    (cut,) = session.run(None, {"input_ids": tokens[:, :8], "attention_mask": mask[:, :8]})
    (masked,) = session.run(None, {"input_ids": tokens, "attention_mask": mask})
    assert np.abs(cut - masked).max() < 1e-3


def test_a_dense_export_equals_its_model(tmp_path):
    model = tiny_llama(layers=1).eval()
    write_dense(model, collect_plan(model), tmp_path / "model.onnx")
    assert compare_outputs(model, tmp_path / "model.onnx") < 1e-5


def test_rows_longer_than_a_sliding_window_are_compared_where_they_are_not_padded(tmp_path):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8,
        max_position_embeddings=64,
    )).eval()  # fmt: skip
    write_dense(model, collect_plan(model), tmp_path / "model.onnx")
    batch = {"input_ids": tiny_batch(length=32)["input_ids"]}
    assert compare_outputs(model, tmp_path / "model.onnx", batch=batch) < 1e-5
    with torch.no_grad():
        model.lm_head.weight[0] += 1.0
    with pytest.raises(ExportMismatch, match="outputs in onnxruntime differ"):
        compare_outputs(model, tmp_path / "model.onnx", batch=batch)


def test_the_export_leaves_the_student_as_it_was():
    student = student_of("decoder", "int8")
    before = {key: value.clone() for key, value in student.state_dict().items()}
    exported("decoder", "int8")
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert len(collect_plan(student).quantized) == 7


class Convolving(nn.Module):
    """A convolution with BatchNorm and dropout, before one quantisable layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 4)
        self.conv, self.norm = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.dropout, self.out = nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, input_ids, attention_mask):
        values = self.embed(input_ids) * attention_mask[..., None]
        values = self.dropout(self.norm(self.conv(values.transpose(1, 2)))).transpose(1, 2)
        return type("Output", (), {"logits": self.out(values)})()


def test_dropout_is_gone_and_batch_norm_is_folded(tmp_path):
    model = Convolving()
    for _ in range(3):
        model(torch.randint(0, 16, (4, 9)), torch.ones(4, 9))  # moves the running statistics
    model.eval()
    plan = collect_plan(tiny_llama(layers=1))
    save_onnx(trace(model, plan, names=[]), tmp_path / "model.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "Conv" in kinds
    assert not kinds & {"BatchNormalization", "Dropout"}
    tokens = torch.randint(0, 16, (2, 7))
    mask = torch.ones_like(tokens)
    inputs = {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()}
    (held,) = open_exactly(tmp_path / "model.onnx").run(None, inputs)
    assert np.abs(held - model(tokens, mask).logits.detach().numpy()).max() < 1e-5


class Unexportable(nn.Module):
    def forward(self, input_ids, attention_mask):
        raise TypeError("no graph of this")


def test_a_model_that_does_not_export_is_named():
    plan = collect_plan(tiny_llama(layers=1))
    with pytest.raises(UnsupportedModel, match="Unexportable does not export to ONNX"):
        trace(Unexportable(), plan, names=[])


def test_every_scheme_is_tried():
    assert {scheme for _, scheme in PAIRS} == set(SCHEMES)


def test_settling_a_copys_weights_leaves_the_original_its_own():
    student = student_of("decoder", "int8")
    layer = student.model.layers[0].mlp.up_proj
    before = layer.weight.clone()
    copied = copy.deepcopy(student)
    settle_weights(copied)
    settled = copied.model.layers[0].mlp.up_proj
    assert type(settled) is nn.Linear and torch.equal(settled.weight, before)
    assert torch.equal(layer.weight, before) and "weight" not in dict(layer.named_parameters())
