"""Making the student that a run starts from."""

import copy

from torch import nn

from compress.errors import BadInput
from compress.models import config_of, layer_list_of


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
    """A copy of the teacher with `layers` of its layers (and all else), trainable.

    Args:
        teacher: a Hugging Face model, decoder or encoder, that keeps its layers in one list.
        layers: how many to keep; the teacher's number keeps all, 1 keeps the first.

    Raises:
        BadInput: more layers are asked for than there are, or fewer than one.
        UnsupportedModel: there is no such list.
    """
    total = len(layer_list_of(teacher)[1])
    if not 1 <= layers <= total:
        raise BadInput(f"student.layers={layers}, but the teacher has {total}; use 1 to {total}")
    return keep_layers(teacher, evenly_spaced(layers, of=total))


def keep_layers(model: nn.Module, indices: list[int]) -> nn.Module:
    """A trainable float32 copy of `model` with only these layers; its config agrees."""
    kept = copy.deepcopy(model)
    name, layers = layer_list_of(kept)
    owner_name, _, attribute = name.rpartition(".")
    chosen = nn.ModuleList([layers[i] for i in indices])
    setattr(kept.get_submodule(owner_name), attribute, chosen)
    for position, layer in enumerate(chosen):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = position  # type: ignore[assignment]  # caches are found by it
    config = config_of(kept)
    config.num_hidden_layers = len(indices)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in indices]
    return kept.float().requires_grad_(True).train()
