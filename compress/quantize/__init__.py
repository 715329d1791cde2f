"""Quantisation: schemes, fake quantisation with learned scales, first scales, calibration."""

from compress.quantize.calibration import calibrate, calibration_batches, start
from compress.quantize.fake_quantize import fake_quantize, fake_quantize_dynamic
from compress.quantize.prepare import freeze_scales, prepare, set_enabled
from compress.quantize.schemes import SCHEMES, check_layers, resolve_scheme
from compress.quantize.transforms import QuantizeInput, QuantizeWeight

__all__ = [
    "SCHEMES",
    "QuantizeInput",
    "QuantizeWeight",
    "calibrate",
    "calibration_batches",
    "check_layers",
    "fake_quantize",
    "fake_quantize_dynamic",
    "freeze_scales",
    "prepare",
    "resolve_scheme",
    "set_enabled",
    "start",
]
