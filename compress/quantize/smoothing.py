"""SmoothQuant: move outliers from a layer's inputs into its weights, the function unchanged.

Legend: I input columns of the layers that read one tensor.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compress.errors import BadInput
from compress.transforms import Stage, trained_weight, weight_before

READERS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)
"""What makes a tensor, and the layers that read it, by their names in a decoder layer.

The last is no norm: silu(gate) * up is linear in up, so its rows take the factor.
"""


class Seam(NamedTuple):
    """One tensor inside the model: who makes it, who reads it."""

    maker: nn.Module
    readers: tuple[nn.Module, ...]
    names: tuple[str, ...]


def seams_of(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[Seam]:
    """The tensors whose every reader is among `layers`."""
    modules = dict(model.named_modules())
    for name in modules:
        for maker, readers in READERS:
            paths = tuple(f"{name}.{reader}".lstrip(".") for reader in readers)
            source = modules.get(f"{name}.{maker}".lstrip("."))
            if source is not None and all(path in layers for path in paths):
                yield Seam(source, tuple(layers[path] for path in paths), paths)


def smoothing_factors(
    largest_inputs_I: Tensor, largest_weights_I: Tensor, *, smoothing: float
) -> Tensor:
    """`max|X_j|^a / max|W_j|^(1 - a)` for each input column j (Xiao et al. 2023, eq. 4).

    Args:
        largest_inputs_I: magnitude of each input column over the calibration data.
        largest_weights_I: the same of the weights that multiply it.
        smoothing: a, the share of the difficulty that the weights take over, in [0, 1]; at 0.0
            the weights become even, at 1.0 the inputs do.

    Columns that are never used keep the factor 1. arXiv 2211.10438.
    """
    used = (largest_inputs_I > 0) & (largest_weights_I > 0)
    factors = largest_inputs_I.clamp(min=1e-5).pow(smoothing) / largest_weights_I.clamp(
        min=1e-5
    ).pow(1.0 - smoothing)
    return torch.where(used, factors.clamp(1e-4, 1e4), torch.ones_like(factors))


@torch.no_grad()
def smooth(seam: Seam, largest_inputs_I: Tensor, *, smoothing: float) -> None:
    """Divides what the maker gives and multiplies what the readers hold, column by column."""
    weights = [weight_before(reader, Stage.QUANTIZE) for reader in seam.readers]
    largest_weights = torch.stack([w.abs().amax(0).float() for w in weights]).amax(0)
    factors = smoothing_factors(largest_inputs_I.float(), largest_weights, smoothing=smoothing).to(
        weights[0].device
    )
    for reader in seam.readers:
        trained_weight(reader).mul_(factors)
    made = trained_weight(seam.maker)
    made.div_(factors if made.dim() == 1 else factors[:, None])
    bias = getattr(seam.maker, "bias", None)
    if bias is not None:
        bias.div_(factors)


def require_seams(seams: list[Seam]) -> None:
    """Raises `BadInput` where nothing can be smoothed."""
    if not seams:
        raise BadInput(
            "init=smoothquant: found no norm or up_proj whose readers are all quantised "
            f"(looked for {', '.join(maker for maker, _ in READERS)}); use init=gptq or mse"
        )
