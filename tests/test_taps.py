"""Taps belong to one model: a copy has its own, and they start empty."""

import copy

import torch

from compress.quantize.inputs import Shared
from compress.taps import taps_of
from tests.tiny import tiny_batch, tiny_llama


def test_a_model_with_caught_values_is_copied_and_the_copy_catches_its_own():
    model = tiny_llama(layers=1)
    taps_of(model).open(["model.layers.0"])
    model(**tiny_batch())
    copied = copy.deepcopy(model)
    assert taps_of(copied) is not taps_of(model)
    assert taps_of(copied).take() == {}
    before = taps_of(model).take()["model.layers.0"]
    copied(**tiny_batch())
    assert taps_of(model).take() == {}
    torch.testing.assert_close(taps_of(copied).take()["model.layers.0"], before)


def test_closing_a_copy_leaves_the_original_open():
    model = tiny_llama(layers=1)
    taps_of(model).open(["model.layers.0"])
    copied = copy.deepcopy(model)
    taps_of(copied).close()
    for one in (model, copied):
        one(**tiny_batch())
    assert list(taps_of(model).take()) == ["model.layers.0"]
    assert taps_of(copied).take() == {}


def test_a_copied_rounding_starts_empty():
    shared = Shared(readers=3)
    values = torch.ones(2, requires_grad=True) * 2
    shared.keep(values, values + 1)
    copied = copy.deepcopy(shared)
    assert copied.readers == 3
    assert copied.take(values) is None
