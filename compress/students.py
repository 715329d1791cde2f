"""Making the student that a run starts from."""

import copy

from torch import nn

from compress.errors import BadInput
from compress.models import backbone_of, config_of


def evenly_spaced(count: int, *, of: int) -> list[int]:
    """`count` indices out of `range(of)`, evenly spaced, the first and the last among them.

    >>> evenly_spaced(3, of=6)
    [0, 3, 5]
    """
    if count == 1:
        return [0]
    # half up, not half to even: rounding must not depend on where an index falls
    return [int(i * (of - 1) / (count - 1) + 0.5) for i in range(count)]


def student_from_teacher(teacher: nn.Module, *, layers: int) -> nn.Module:
    """A copy of the teacher with `layers` of its decoder layers (and all else), trainable.

    Args:
        teacher: a Hugging Face causal LM whose backbone keeps its layers in `.layers`.
        layers: how many to keep; the teacher's number keeps all, 1 keeps the first.

    Raises:
        BadInput: more layers are asked for than there are, or fewer than one.
    """
    total = len(backbone_of(teacher).layers)  # type: ignore[arg-type]
    if not 1 <= layers <= total:
        raise BadInput(f"student.layers={layers}, but the teacher has {total}; use 1 to {total}")
    return keep_layers(teacher, evenly_spaced(layers, of=total))


def keep_layers(model: nn.Module, indices: list[int]) -> nn.Module:
    """A trainable float32 copy of `model` with only these decoder layers; its config agrees."""
    kept = copy.deepcopy(model)
    backbone = backbone_of(kept)
    backbone.layers = nn.ModuleList([backbone.layers[i] for i in indices])  # type: ignore[index]
    for position, layer in enumerate(backbone.layers):
        attention = getattr(layer, "self_attn", None)
        if attention is not None and hasattr(attention, "layer_idx"):
            attention.layer_idx = position  # key-value caches are found by it
    config = config_of(kept)
    config.num_hidden_layers = len(indices)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in indices]
    return kept.float().requires_grad_(True).train()
