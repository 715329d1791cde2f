"""Quantisation: schemes, fake quantisation with learned scales, first scales, calibration."""

from compress.quantize.calibration import calibrate, calibration_batches
from compress.quantize.fake_quantize import fake_quantize, fake_quantize_dynamic
from compress.quantize.inputs import QuantizeInput
from compress.quantize.post_training import Calibration, start
from compress.quantize.prepare import prepare
from compress.quantize.schemes import SCHEMES, check_layers, resolve_scheme
from compress.quantize.switches import freeze_scales, set_enabled
from compress.quantize.transforms import QuantizeWeight

__all__ = [
    "SCHEMES",
    "Calibration",
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
