"""Forward against compressed-tensors' own arithmetic, backward against the LSQ formula."""

import sys

import pytest
import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize as oracle
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.quantize import SCHEMES, fake_quantize, fake_quantize_dynamic, resolve_scheme
from compress.quantize.grid import Grid, grid_of, largest_magnitude, merge, split, split_scale
from compress.quantize.observers import nvfp4_global_scale

INT4 = Grid(kind="int", q_min=-8.0, q_max=7.0)


def random_weight(seed: int, spread: float, rows: int = 128, columns: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows_scale = torch.rand(rows, 1, generator=generator) * spread + 1e-3
    return torch.randn(rows, columns, generator=generator) * rows_scale


def ours(weight, args):
    grid = grid_of(args)
    largest = largest_magnitude(args, weight)
    global_scale = nvfp4_global_scale(largest) if args.strategy == "tensor_group" else None
    scale = grid.scale_of(largest)
    used = fake_quantize(
        split(args, weight), split_scale(args, scale), grid=grid, global_scale=global_scale
    )
    return merge(args, used), grid.round_scale(scale, global_scale), global_scale


@pytest.mark.parametrize("scheme", SCHEMES)
@given(seed=st.integers(0, 1 << 30), spread=st.floats(1e-6, 1e4))
@settings(max_examples=6, deadline=None)
def test_forward_equals_compressed_tensors(scheme, seed, spread):
    args = resolve_scheme(scheme).weights
    weight = random_weight(seed, spread)
    used, scale, global_scale = ours(weight, args)
    stored = scale if global_scale is None else scale * global_scale
    zero_point = torch.zeros_like(stored)
    expected = oracle(weight, stored, zero_point, args, global_scale=global_scale)
    # a two-level scale is divided again by the oracle: one rounding more
    tolerance = 0.0 if global_scale is None else 1e-6
    torch.testing.assert_close(used, expected, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("scheme", ["W8A8", "FP8_DYNAMIC", "FP8_BLOCK", "MXFP4"])
@given(seed=st.integers(0, 1 << 30), spread=st.floats(1e-6, 1e4))
@settings(max_examples=6, deadline=None)
def test_dynamic_activations_equal_compressed_tensors(scheme, seed, spread):
    args = resolve_scheme(scheme).input_activations
    values = random_weight(seed, spread).view(2, 64, 256)
    used = merge(args, fake_quantize_dynamic(split(args, values), grid=grid_of(args)))
    scale, zero_point = compute_dynamic_scales_and_zp(values, args, torch.nn.Identity())
    assert torch.equal(used, oracle(values, scale, zero_point, args))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_of_half_precision_weights_are_those_of_fp32(dtype):
    args = resolve_scheme("W4A16", group_size=32).weights
    weight = random_weight(0, 1.0).to(dtype)
    used, _, _ = ours(weight, args)
    exact, _, _ = ours(weight.float(), args)
    assert used.dtype == dtype
    assert torch.equal(used, exact.to(dtype))


def test_gradients_follow_the_lsq_formula():
    weight = torch.randn(6, 32, requires_grad=True)
    scale = torch.full((6, 1), 0.15, requires_grad=True)
    grad = torch.randn(6, 32)
    fake_quantize(weight, scale, grid=INT4).backward(grad)
    steps = (weight / scale).detach()
    inside = (steps >= -8) & (steps <= 7)
    assert 0 < inside.sum() < inside.numel()
    slope = torch.where(inside, steps.round() - steps, steps.clamp(-8, 7))
    factor = (32 * 7.0) ** -0.5
    torch.testing.assert_close(weight.grad, grad * inside)
    torch.testing.assert_close(scale.grad, (grad * slope).sum(-1, keepdim=True) * factor)


def test_scale_gradient_equals_finite_differences_where_no_code_changes():
    """With the codes held, `q = scale * code` and the straight-through part is `-w / scale`."""
    weight, scale = torch.randn(64).double().float(), torch.tensor([0.3])
    saturated = torch.tensor([50.0, -50.0])
    held = scale.clone().requires_grad_()
    fake_quantize(saturated, held, grid=INT4).sum().backward()
    step = 1e-3
    high = fake_quantize(saturated, scale + step, grid=INT4).sum()
    low = fake_quantize(saturated, scale - step, grid=INT4).sum()
    factor = (2 * 7.0) ** -0.5
    torch.testing.assert_close(held.grad[0], (high - low) / (2 * step) * factor, rtol=1e-3, atol=0)
    assert weight.isfinite().all()


@pytest.mark.parametrize("value", [7.0, 7.2, 8.0, -8.0, -8.4, 1e30, float("inf"), -float("inf")])
def test_saturated_values_have_a_defined_gradient(value):
    weight = torch.tensor([value], requires_grad=True)
    scale = torch.tensor([1.0], requires_grad=True)
    fake_quantize(weight, scale, grid=INT4).sum().backward()
    inside = -8 <= value <= 7
    assert weight.grad.item() == float(inside)
    assert scale.grad.item() == pytest.approx(0.0 if inside else (7 if value > 0 else -8) * 7**-0.5)


def test_zeros_survive_quantization():
    weight = torch.randn(16, 64)
    weight[torch.rand(16, 64) < 0.7] = 0.0
    for scheme in SCHEMES:
        args = resolve_scheme(
            scheme, group_size=32 if scheme.startswith(("W4", "W3", "W2")) else None
        )
        if args.weights.strategy in ("block", "group") and 64 % (args.weights.group_size or 128):
            continue
        used, _, _ = ours(weight, args.weights)
        assert (used[weight == 0] == 0).all(), scheme


def test_backward_saves_only_the_arguments():
    """Memory for backward: the weight is a reference, the rest is one scale a row."""
    weight = torch.randn(64, 64, requires_grad=True)
    scale = torch.full((64, 1), 0.1, requires_grad=True)
    new_bytes = []

    def note(tensor):
        if tensor.data_ptr() != weight.data_ptr():
            new_bytes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        fake_quantize(weight, scale, grid=INT4)
    assert sum(new_bytes) == scale.numel() * 4


def test_nan_stays_nan_and_passes_no_gradient():
    weight = torch.tensor([float("nan"), 1.0], requires_grad=True)
    used = fake_quantize(weight, torch.tensor([1.0]), grid=INT4)
    used.sum().backward()
    assert used[0].isnan()
    assert weight.grad.tolist() == [0.0, 1.0]


def test_large_tensors_are_worked_in_parts_with_the_same_result():
    weight = torch.randn(1000, 300, requires_grad=True)
    scale = torch.rand(1000, 1).add(0.1).requires_grad_()
    used = fake_quantize(weight, scale, grid=INT4)
    used.sum().backward()
    whole = torch.clamp(weight / scale, -8, 7).round() * scale
    assert torch.equal(used, whole)
    row = weight[7].detach().requires_grad_(), scale[7].detach().requires_grad_()
    fake_quantize(*row, grid=INT4).sum().backward()
    torch.testing.assert_close(scale.grad[7], row[1].grad)


def test_compiled_equals_eager_without_graph_breaks():
    def step(weight, scale, values):
        used = fake_quantize(weight, scale, grid=INT4)
        return (fake_quantize_dynamic(values, grid=INT4) @ used.T).square().sum()

    arguments = [torch.randn(8, 32), torch.full((8, 1), 0.2), torch.randn(4, 32)]
    results = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        leaves = [a.clone().requires_grad_() for a in arguments]
        run(*leaves).backward()
        results.append([leaf.grad for leaf in leaves])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_batches_of_ever_new_lengths_leave_bounded_scratch_behind():
    module = sys.modules[fake_quantize.__module__]
    scale = torch.ones(1, requires_grad=True)
    for length in range(1, 2 * module.KNOWN_SHAPES):
        values = torch.linspace(-9.0, 9.0, length)
        fake_quantize(values, scale, grid=INT4).sum().backward()
    assert 0 < len(module._BUFFERS.views) <= module.KNOWN_SHAPES
