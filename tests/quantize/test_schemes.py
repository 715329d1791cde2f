"""Presets and parts, and the refusal of layers that cannot take them."""

import pytest
from torch import nn

from compress.errors import UnsupportedScheme
from compress.quantize import check_layers, resolve_scheme


def test_a_preset_and_its_parts_are_the_same_scheme():
    assert resolve_scheme(None, weight_bits=4, activation_bits=16) == resolve_scheme("w4a16")


def test_static_w8a8_has_one_input_scale():
    args = resolve_scheme("W8A8", activations="static").input_activations
    assert (args.strategy, args.dynamic) == ("tensor", False)


@pytest.mark.parametrize("scheme", ["W4A16_ASYM", "W4A4", "nonsense", "W4A17"])
def test_what_cannot_be_served_is_refused(scheme):
    with pytest.raises(UnsupportedScheme, match=scheme):
        resolve_scheme(scheme)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scheme": "W8A8", "group_size": 32}, "one scale per channel"),
        ({"scheme": "NVFP4", "group_size": 32}, "fixed size"),
        ({"scheme": "W4A16", "activations": "static"}, "does not quantise activations"),
        ({"scheme": "W4A16", "weight_bits": 4}, "give one"),
        ({"scheme": None}, "neither"),
        ({"scheme": "W4A16", "group_size": 0}, "group_size=0"),
    ],
)
def test_contradicting_parts_are_refused(settings, said):
    with pytest.raises(UnsupportedScheme, match=said):
        resolve_scheme(**settings)


def test_every_layer_that_does_not_fit_is_listed():
    layers = {
        "a.down_proj": nn.Linear(96, 8),
        "b.q_proj": nn.Linear(128, 8),
        "c.up": nn.Linear(40, 8),
    }
    schemes = dict.fromkeys(layers, resolve_scheme("W4A16", group_size=64))
    with pytest.raises(UnsupportedScheme) as caught:
        check_layers(layers, schemes)
    message = str(caught.value)
    assert "2 of 3 layers" in message
    assert "a.down_proj   96 columns" in message
    assert "c.up          40 columns" in message
    assert "b.q_proj" not in message
    assert "exclude='*down_proj,*up'" in message
