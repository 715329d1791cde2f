"""What the soak calls flat, and what it calls growing."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import slopes

HOURS = [minute / 60 for minute in range(90)]


def noisy(slope, *, noise=1.0):
    draw = random.Random(0)
    return [100 + slope * hour + draw.gauss(0, noise) for hour in HOURS]


def test_a_leak_grows_and_its_slope_lies_in_the_interval():
    line = slopes.fit(HOURS, noisy(10.0))
    assert line.low < 10.0 < line.high
    assert not line.is_flat


def test_noise_and_constants_are_flat():
    assert slopes.fit(HOURS, noisy(0.0)).is_flat
    assert slopes.fit(HOURS, [12.0] * 90).is_flat


def test_related_noise_widens_the_interval():
    values = noisy(0.0)
    slow = [sum(values[max(0, i - 9) : i + 1]) / min(i + 1, 10) for i in range(90)]
    line = slopes.fit(HOURS, slow)
    assert line.high - line.low > line.noise


def test_too_few_values_are_refused():
    with pytest.raises(ValueError, match="four"):
        slopes.fit([0, 1, 2], [1.0, 2.0, 3.0])
