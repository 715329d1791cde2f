"""Which student module learns from which teacher module, and how wide their outputs are."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from compress.errors import BadInput
from compress.models import config_of, layer_list_of
from compress.taps import EMBEDDING, module_name

LayerMap = Literal["uniform", "last", "skip"]


def layer_names(model: nn.Module) -> list[str]:
    """Dotted names of the model's blocks, in order (`model.layers.0`, `bert.encoder.layer.0`).

    Raises:
        UnsupportedModel: no module list has as many entries as the configuration has layers.
    """
    name, layers = layer_list_of(model)
    return [f"{name}.{index}" for index in range(len(layers))]


def map_layers(kind: str, *, student: int, teacher: int) -> list[int]:
    """For each student layer the teacher layer it learns from.

    Args:
        kind: `uniform`, the end of each of `student` equal blocks, the last with the last;
            `last`, the teacher's last ones (PKD-last, Sun et al. 2019, arXiv 1908.09355);
            `skip`, the first of each block.
        student: number of student layers.
        teacher: number of teacher layers; as many: each layer learns from its own.

    Raises:
        BadInput: the kind is unknown, or the student is the deeper one.

    >>> [map_layers(kind, student=3, teacher=6) for kind in ("uniform", "last", "skip")]
    [[1, 3, 5], [3, 4, 5], [0, 2, 4]]
    """
    if kind not in ("uniform", "last", "skip"):
        raise BadInput(f"layer_map={kind!r} is unknown; use uniform, last or skip")
    if not 0 < student <= teacher:
        raise BadInput(
            f"a layer map needs at least as many teacher layers as student layers, not "
            f"{teacher} for {student}; name pairs of modules instead"
        )
    if kind == "last":
        return list(range(teacher - student, teacher))
    if kind == "skip":
        return [index * teacher // student for index in range(student)]
    return [(index + 1) * teacher // student - 1 for index in range(student)]


def mapped_pairs(
    kind: str, student: nn.Module, teacher: nn.Module, *, within: Sequence[str] = ()
) -> dict[str, str]:
    """Student module name to teacher module name, by a layer map.

    Args:
        kind: see `map_layers`.
        student: any model with a list of layers.
        teacher: another.
        within: modules inside a layer (`self_attn.q_proj`); empty takes the layer's output.
    """
    ours, theirs = layer_names(student), layer_names(teacher)
    indices = map_layers(kind, student=len(ours), teacher=len(theirs))
    parts = [f".{part}" for part in within] or [""]
    return {
        ours[position] + part: theirs[index] + part
        for position, index in enumerate(indices)
        for part in parts
    }


def output_width(model: nn.Module, name: str) -> int:
    """Width of a module's output, read off the module or, for blocks, the configuration.

    Raises:
        BadInput: the model has no module of that name.
    """
    if name == EMBEDDING:
        return int(config_of(model).hidden_size)
    try:
        module = model.get_submodule(module_name(name))
    except AttributeError as error:
        raise BadInput(f"no module of {type(model).__name__} is called {name!r}") from error
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    weight = getattr(module, "weight", None)
    if weight is not None and weight.dim() == 1:  # a norm
        return int(weight.shape[0])
    return int(config_of(model).hidden_size)
