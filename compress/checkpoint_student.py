"""A student made of some layers of a checkpoint, read alone: the teacher is never loaded whole."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress.errors import BadInput, UnsupportedModel
from compress.students import evenly_spaced

LAYER = re.compile(r"^(.*?\blayers\.)(\d+)(\..*)$")


def student_from_checkpoint(folder: Path, *, layers: int | None) -> nn.Module:
    """What `student_from_teacher` gives, from a folder: memory for the kept layers alone.

    Args:
        folder: a causal language model, `config.json` and `*.safetensors`.
        layers: how many to keep, evenly spaced; None keeps all.

    Raises:
        BadInput: more layers are asked for than there are, or fewer than one.
        UnsupportedModel: the checkpoint names its tensors otherwise than the model does.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    total = int(text.num_hidden_layers)
    count = total if layers is None else layers
    if not 1 <= count <= total:
        raise BadInput(f"student.layers={count}, but the teacher has {total}; use 1 to {total}")
    kept = evenly_spaced(count, of=total)
    text.num_hidden_layers = count
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[index] for index in kept]
    opener: Any = transformers.AutoModelForCausalLM
    model: nn.Module = opener.from_config(config).float()
    _load(model, dict(_tensors(folder, kept)), folder)
    return model.requires_grad_(True).train()


def _tensors(folder: Path, kept: list[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the kept layers under their new numbers, and all that belongs to no layer."""
    from safetensors import safe_open

    opener: Any = safe_open
    place = {index: position for position, index in enumerate(kept)}
    for path in sorted(folder.glob("*.safetensors")):
        with opener(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                found = LAYER.match(name)
                if found is None:
                    yield name, file.get_tensor(name).float()
                elif int(found[2]) in place:
                    renamed = f"{found[1]}{place[int(found[2])]}{found[3]}"
                    yield renamed, file.get_tensor(name).float()


def _load(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    found = model.load_state_dict(tensors, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = [name for name in found.missing_keys if name not in tied]
    if missing or found.unexpected_keys:
        raise UnsupportedModel(
            f"{folder}: {type(model).__name__} and its checkpoint name tensors differently "
            f"(missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}): load the student "
            "on its own with student=hf student.path=..."
        )
