"""Turning the quantisers of a model on, off and still; checking the words they are told."""

from torch import nn

from compress.errors import BadInput, did_you_mean
from compress.quantize.fusion import quantizers
from compress.quantize.magnitudes import OBSERVERS
from compress.quantize.post_training import STARTS
from compress.quantize.scales import SCALE_MODES

BACKWARDS = ("clipped", "straight_through")
SCALE_DTYPES = ("float32", "bfloat16", "float16")


def set_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch every quantiser of a model on or off (a dense forward)."""
    for part in quantizers(model):
        part.enabled = enabled


def freeze_scales(model: nn.Module) -> None:
    """Keep every scale at its present value from now on."""
    for part in quantizers(model):
        part.freeze()


def mark_frozen(model: nn.Module) -> None:
    """After a restore: the scales in the checkpoint were frozen already."""
    for part in quantizers(model):
        part.frozen = True


def check_settings(
    *,
    init: str,
    scales: str,
    scale_dtype: str | None,
    observer: str = "minmax",
    backward: str = "clipped",
    kv_cache: str | None = None,
) -> None:
    """Refuse unknown words before anything is built.

    Raises:
        BadInput: names the setting, what is known, and the nearest word.
    """
    known = {
        "init": (init, STARTS),
        "scales": (scales, SCALE_MODES),
        "scale_dtype": (scale_dtype or "float32", SCALE_DTYPES),
        "observer": (observer, OBSERVERS),
        "backward": (backward, BACKWARDS),
        "kv_cache": (kv_cache or "fp8", ("fp8",)),
    }
    for setting, (value, words) in known.items():
        if value not in words:
            hint = did_you_mean(value, words)
            raise BadInput(f"{setting}={value!r} is unknown.{hint} Use one of {', '.join(words)}")
