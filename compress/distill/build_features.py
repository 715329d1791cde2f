"""From settings and both models to one feature loss: pairs found, widths known, projectors made."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from compress.distill.features import FeatureLoss
from compress.distill.layer_maps import mapped_pairs, output_width
from compress.errors import BadInput
from compress.models import layer_list_of


def build_feature_loss(
    student: nn.Module,
    teacher: Any,
    *,
    kind: str,
    pairs: Mapping[str, str] | None,
    layer_map: str = "uniform",
    within: Sequence[str] = (),
    heads: int = 1,
    seed: int = 0,
) -> FeatureLoss:
    """The loss over these pairs, or over those of a layer map.

    Args:
        student: the model that learns.
        teacher: has its model in this process (`.model`), or stored features with their widths
            (`.features`, name to width), as a cache has; then `pairs` must name them.
        kind: see `FeatureLoss`.
        pairs: student module name to teacher module name; None: by `layer_map`.
        layer_map: see `compress.distill.layer_maps.map_layers`.
        within: modules inside each layer; empty: the layer's output.
        heads: of `relations`.
        seed: of the projectors' start.

    Raises:
        BadInput: a module cannot be found, or the teacher's cannot be known.
    """
    # a sharded or cached teacher has its modules' names and widths at least
    model = getattr(teacher, "model", None) or getattr(teacher, "skeleton", None)
    if kind == "attention":
        within = within or [attention_map_of(student)]
        each: Any
        for each in (student, model):
            if hasattr(each, "set_attn_implementation"):
                each.set_attn_implementation("eager")  # the others never hold the map
    if not pairs:
        if not isinstance(model, nn.Module):
            raise BadInput(
                f"layer_map={layer_map} needs a teacher whose layers are in this process; "
                "name the stored features instead: pairs={student_module: teacher_module}"
            )
        pairs = mapped_pairs(layer_map, student, model, within=within)
    theirs = [_teacher_width(teacher, model, name) for name in pairs.values()]
    ours = [output_width(student, name) for name in pairs]
    return FeatureLoss(
        pairs=pairs, kind=kind, widths=list(zip(ours, theirs, strict=True)), heads=heads, seed=seed
    )


def attention_map_of(model: nn.Module) -> str:
    """Where inside a layer the attention map is: `self_attn:1`, `attention.self:1`.

    Raises:
        BadInput: no part of a layer is named an attention.
    """
    layer = layer_list_of(model)[1][0]
    found = [n for n, part in layer.named_modules() if type(part).__name__.endswith("Attention")]
    if not found:
        raise BadInput(f"no attention found in {type(layer).__name__}: name pairs, such as a.b:1")
    return f"{max(found, key=len)}:1"  # the innermost


def _teacher_width(teacher: Any, model: Any, name: str) -> int:
    if isinstance(model, nn.Module):
        return output_width(model, name)
    stored: Mapping[str, int] = getattr(teacher, "features", {})
    if name not in stored:
        raise BadInput(f"the teacher holds no feature {name!r}, only {sorted(stored) or 'logits'}")
    return int(stored[name])
