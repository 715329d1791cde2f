"""Static scales from what calibration saw: largest magnitude, percentile, least squared error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import BadInput
from compress.quantize import QuantizeInput, resolve_scheme
from compress.quantize.grid import Grid
from compress.quantize.magnitudes import bucket_middles, clipping_point, count_magnitudes

INT8 = Grid(kind="int", q_min=-128.0, q_max=127.0)


def heavy_tailed(seed, size=20_000):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator) ** 3


def point(values, observer, percentile=0.999):
    counts = count_magnitudes(values)
    largest = values.abs().max().reshape(1)
    return float(clipping_point(largest, counts, INT8, observer=observer, percentile=percentile))


@given(seed=st.integers(0, 1 << 30), share=st.floats(0.5, 1.0))
@settings(max_examples=15, deadline=None)
def test_the_percentile_is_right_to_a_bucket(seed, share):
    values = heavy_tailed(seed)
    exact = float(values.abs().sort().values[max(0, int(-(-share * len(values) // 1)) - 1)])
    assert point(values, "percentile", share) == pytest.approx(exact, rel=0.01)


def test_the_whole_share_is_the_largest_magnitude():
    values = heavy_tailed(0)
    largest = float(values.abs().max())
    assert point(values, "minmax") == largest
    assert point(values, "percentile", 1.0) == pytest.approx(largest, rel=0.01)


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=10, deadline=None)
def test_least_error_is_no_worse_than_the_largest_magnitude(seed):
    values = heavy_tailed(seed)

    def error(end):
        scale = INT8.scale_of(torch.tensor([end]))
        return float(((values / scale).round().clamp(-128, 127) * scale - values).square().sum())

    assert error(point(values, "mse")) <= error(point(values, "minmax")) * 1.001


def test_buckets_hold_every_float_and_their_middles_lie_inside():
    values = torch.tensor([0.0, 1e-45, 1e-30, 0.5, 3.0, 3e38, float("inf"), float("nan")])
    counts = count_magnitudes(torch.cat((values, -values)))
    assert counts.sum() == 16
    finite = values[3:6]
    middles = bucket_middles()[count_magnitudes(finite).nonzero().squeeze(-1)]
    torch.testing.assert_close(middles, finite, rtol=0.008, atol=0)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_observers_reach_the_scale(observer):
    args = resolve_scheme("W8A8", activations="static").input_activations
    transform = QuantizeInput(args=args, observer=observer, percentile=0.99)
    transform.observe()
    for seed in range(3):
        transform(heavy_tailed(seed).view(10, -1))
    transform.calibrated()
    largest = max(float(heavy_tailed(seed).abs().max()) for seed in range(3))
    scale = transform.scheme().tensors["scale"].item()
    assert (scale == pytest.approx(largest / 127.5)) == (observer == "minmax")
    assert scale <= largest / 127.5 * 1.0001


def test_an_unknown_observer_is_refused():
    with pytest.raises(BadInput, match="minmax, percentile, mse"):
        point(heavy_tailed(0), "max")
