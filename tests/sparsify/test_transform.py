"""The mask in the chain: forward, backward, order, packed state."""

import io

import pytest
import torch
from torch import nn

from compress.sparsify.masks import topk_mask
from compress.sparsify.transform import MaskWeight
from compress.transforms import Stage, WeightTransform, apply_mask, attach_transform, trained_weight


class Int4Like(WeightTransform):
    """Symmetric rounding to a grid, as a stand-in for a quantiser."""

    stage = Stage.QUANTIZE

    def forward(self, weight):
        scale = weight.abs().max() / 7
        return weight + ((weight / scale).round() * scale - weight).detach()


def masked_linear(*, dense_backward=False, **settings):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8, bias=False)
    transform = MaskWeight(layer.weight, **settings)
    transform.forward_mask.copy_(topk_mask(layer.weight, density=0.25))
    transform.dense_backward = dense_backward
    attach_transform(layer, transform)
    return layer, transform


def gradient_of(layer):
    layer(torch.ones(1, 8)).sum().backward()
    return trained_weight(layer).grad


def test_only_kept_entries_are_used_and_learn():
    layer, transform = masked_linear()
    assert (layer.weight != 0).equal(transform.forward_mask)
    assert (gradient_of(layer) != 0).equal(transform.forward_mask)


def test_a_superset_learns_more_than_is_used():
    layer, transform = masked_linear(superset=True)
    transform.backward_mask.copy_(topk_mask(trained_weight(layer), density=0.5))
    assert (gradient_of(layer) != 0).equal(transform.backward_mask)
    assert int((layer.weight != 0).sum()) == 16


def test_a_dense_backward_decays_the_unused():
    layer, transform = masked_linear(dense_backward=True, decay=0.5)
    assert gradient_of(layer).equal(torch.ones_like(layer.weight))  # clipping sees the loss alone
    assert transform.pulled_mask.equal(~transform.forward_mask)


def test_a_superset_is_pulled_where_it_learns_and_static_masks_nowhere():
    layer, transform = masked_linear(superset=True, decay=0.5)
    transform.backward_mask.copy_(topk_mask(trained_weight(layer), density=0.5))
    between = transform.backward_mask & ~transform.forward_mask
    assert between.any() and transform.pulled_mask.equal(between)
    assert masked_linear(decay=0.5)[1].pulled_mask is None


def test_zeros_survive_quantization_whatever_the_order_of_attachment():
    layer = nn.Linear(8, 8, bias=False)
    attach_transform(layer, Int4Like())
    transform = MaskWeight(layer.weight)
    transform.forward_mask.copy_(topk_mask(trained_weight(layer), density=0.5))
    attach_transform(layer, transform)
    assert (layer.weight[~transform.forward_mask] == 0).all()
    kept = trained_weight(layer)[transform.forward_mask].abs()
    grid = kept.max() / 7
    used = layer.weight[transform.forward_mask].detach()
    torch.testing.assert_close(used / grid, (used / grid).round())


def test_masks_are_one_bit_an_entry_in_a_checkpoint_that_loads_weights_only():
    layer, transform = masked_linear(superset=True)  # noqa: RUF059
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["parametrizations.weight.0.forward_mask"].numel() == 8
    other = nn.Linear(8, 8, bias=False)
    attach_transform(other, MaskWeight(other.weight, superset=True))
    other.load_state_dict(state)
    assert other.weight.equal(layer.weight)
    assert other.parametrizations.weight[0].forward_mask.dtype == torch.bool


def test_the_exporter_sees_mask_pattern_and_density():
    layer, transform = masked_linear()
    record = transform.scheme()
    assert record.kind == "mask"
    assert record.details == {"pattern": "unstructured", "density": 0.25}
    assert record.tensors["mask"].equal(layer.weight != 0)


def test_a_mask_compiles_without_a_graph_break():
    layer, transform = masked_linear()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    compiled(torch.ones(1, 8)).sum().backward()
    assert (trained_weight(layer).grad != 0).equal(transform.forward_mask)
    transform.dense_backward = True  # the schedule opens it: compiled anew, not ignored
    trained_weight(layer).grad = None
    compiled(torch.ones(1, 8)).sum().backward()
    assert (trained_weight(layer).grad != 0).all()
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_masks_equal_the_product_with_their_gradient(dtype):
    values = torch.randn(3, 8, dtype=dtype).requires_grad_()
    mask = torch.arange(8) % 3 == 0  # broadcasts
    compiled = torch.compile(apply_mask, backend="aot_eager", fullgraph=True)(values, mask)
    assert compiled.equal(values * mask) and compiled.dtype == dtype
    compiled.sum().backward()
    assert values.grad.equal(mask.to(dtype).expand_as(values))
    torch._dynamo.reset()
