"""What a batch must be before a model may see it; asked where it costs no wait for a device."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from compress.contract import IGNORED
from compress.errors import BadInput


def check_batch(batch: Any, model: nn.Module) -> None:
    """Refuse tokens that the model does not know, rows longer than its positions, empty batches.

    A model would answer with an index error (with an assertion on the device, which ends the
    process) or, past its rotary positions, with worse numbers and no word.

    Args:
        batch: `input_ids` and perhaps `labels`; anything else is let through.
        model: its `config` tells vocabulary and positions; what it does not tell is not checked.

    Raises:
        BadInput: with the numbers.
    """
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(tokens, Tensor):
        return
    if not tokens.numel():
        raise BadInput(f"a batch is empty: its input_ids have the shape {tuple(tokens.shape)}")
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(config, "vocab_size", None)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and tokens.shape[-1] > positions:
        raise BadInput(
            f"a batch has sequences of {tokens.shape[-1]} tokens, the model {positions} positions: "
            f"give shorter ones, such as data.sequence_length={positions}"
        )
    if vocabulary is None:
        return
    _check_range("input_ids", tokens, vocabulary)
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and labels.shape == tokens.shape:
        _check_range("labels", labels.masked_fill(labels == IGNORED, 0), vocabulary)


def _check_range(name: str, tokens: Tensor, vocabulary: int) -> None:
    low, high = (int(end) for end in tokens.aminmax())
    if low < 0 or high >= vocabulary:
        raise BadInput(
            f"{name} of a batch go from {low} to {high}, the model's vocabulary has {vocabulary} "
            "tokens: use the model's own tokenizer, or resize its embeddings"
        )
