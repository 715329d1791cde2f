"""One row of a teacher's cache: from its answer to packed integers, and back.

Legend: B sequences, L positions, N positions of a row that are no padding, C of them in a chunk,
V vocabulary, K entries a position, E entries.
"""

import math

import torch
from torch import Tensor

from compress.contract import DenseSignal, TopKSignal
from compress.errors import BadInput
from compress.teachers.cache_files import Manifest

CHUNK_ELEMENTS = 1 << 22
MAX_ENTRIES = 255

Signal = DenseSignal | TopKSignal


def encode_row(
    signal: Signal, place: int, used_L: Tensor, manifest: Manifest, *, seed: int
) -> dict[str, Tensor]:
    """What is stored of one row: packed tokens and values of its positions without padding.

    Raises:
        BadInput: the teacher gives fewer tokens than `top_k`, or no distribution to draw from.
    """
    if isinstance(signal, TopKSignal):
        if manifest.draws:
            raise BadInput("draws need the whole distribution: this teacher only gives its top-k")
        tokens_NK = signal.tokens_BLK[place][used_L.to(signal.tokens_BLK.device)]
        values_NK = signal.log_probs_BLK[place][used_L.to(signal.tokens_BLK.device)]
        if tokens_NK.shape[1] < manifest.top_k:
            raise BadInput(f"top_k={manifest.top_k}, but this teacher gives {tokens_NK.shape[1]}")
        values_NK, order = values_NK.topk(manifest.top_k)
        return _packed(tokens_NK.gather(1, order), values_NK.half(), manifest)
    assert signal.hidden_SLH is not None and signal.head is not None
    hidden_NH = signal.hidden_SLH[place][used_L.to(signal.hidden_SLH.device)]
    chunk = max(1, CHUNK_ELEMENTS // manifest.vocab_size)
    generator = torch.Generator(hidden_NH.device).manual_seed(seed)
    parts = []
    for hidden_CH in torch.split(hidden_NH, chunk):
        log_probs_CV = torch.log_softmax(signal.head(hidden_CH).float(), -1)
        if manifest.draws:
            parts.append(_draw(log_probs_CV.exp(), manifest.draws, generator))
        else:
            values, tokens = log_probs_CV.topk(min(manifest.top_k, log_probs_CV.shape[1]))
            parts.append((tokens, values.half()))
    tokens_NK, values_NK = (torch.cat(part) for part in zip(*parts, strict=True))
    return _packed(tokens_NK, values_NK, manifest)


def _draw(probs_CV: Tensor, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distinct drawn tokens and how often each came, (C, K = draws); 0 fills up."""
    drawn_CK = torch.multinomial(probs_CV, draws, replacement=True, generator=generator)
    drawn_CK = drawn_CK.sort(-1).values
    first_CK = torch.ones_like(drawn_CK, dtype=torch.bool)
    first_CK[:, 1:] = drawn_CK[:, 1:] != drawn_CK[:, :-1]
    group_CK = first_CK.cumsum(-1) - 1
    counts_CK = torch.zeros_like(drawn_CK).scatter_add_(1, group_CK, torch.ones_like(drawn_CK))
    tokens_CK = torch.zeros_like(drawn_CK).scatter_(1, group_CK, drawn_CK)
    return tokens_CK, counts_CK.to(torch.uint8)


def _packed(tokens_NK: Tensor, values_NK: Tensor, manifest: Manifest) -> dict[str, Tensor]:
    tokens_NK, values_NK = tokens_NK.cpu(), values_NK.cpu()
    kept_NK = values_NK > 0 if manifest.draws else torch.ones_like(tokens_NK, dtype=torch.bool)
    tokens_E = tokens_NK[kept_NK]
    packed = {
        "lengths": kept_NK.sum(-1).to(torch.uint8),
        "tokens_low": (tokens_E & 0xFFFF).to(torch.uint16).view(torch.int16),
        "counts" if manifest.draws else "log_probs": values_NK[kept_NK],
    }
    if manifest.vocab_size > 1 << 16:
        packed["tokens_high"] = (tokens_E >> 16).to(torch.uint8)
    return packed


def decode_row(packed: dict[str, Tensor], *, draws: int, width: int) -> tuple[Tensor, Tensor]:
    """Tokens and log-probabilities (N, K = width); -inf fills up positions with fewer."""
    tokens_E = packed["tokens_low"].long() & 0xFFFF
    if "tokens_high" in packed:
        tokens_E |= packed["tokens_high"].long() << 16
    values_E = (packed["counts"].float() / draws).log() if draws else packed["log_probs"].float()
    lengths_N = packed["lengths"].long()
    filled_NK = torch.arange(width) < lengths_N[:, None]
    tokens_NK = torch.zeros(len(lengths_N), width, dtype=torch.long)
    values_NK = torch.full((len(lengths_N), width), -math.inf)
    tokens_NK[filled_NK], values_NK[filled_NK] = tokens_E, values_E
    return tokens_NK, values_NK
