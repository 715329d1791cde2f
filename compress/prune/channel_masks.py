"""Structured masks in the weights' chain: a masked model computes what the shrunk one will."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModel
from compress.prune.cuts import Cut, cuts_of
from compress.prune.importance import Importance
from compress.prune.plan import Indices, PrunePlan, PruneSizes
from compress.prune.structure import Structure
from compress.transforms import (
    Stage,
    TransformRecord,
    WeightTransform,
    apply_mask,
    attach_transform,
)


class ChannelMask(WeightTransform):
    """used = weight * rows * columns, each 0 or 1; what is masked gets no gradient.

    Args:
        weight: the trained weight (outputs, inputs), for its shape and device.
    """

    stage = Stage.MASK
    rows: Tensor
    columns: Tensor

    def __init__(self, weight: Tensor) -> None:
        """All ones."""
        super().__init__()
        ones = torch.ones(1, dtype=torch.bool, device=weight.device)
        self.register_buffer("rows", ones.repeat(weight.shape[0])[:, None])
        self.register_buffer("columns", ones.repeat(weight.shape[1])[None])

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight."""
        return apply_mask(weight, self.rows & self.columns)

    def keep(self, *, rows: Sequence[int] | None, columns: Sequence[int] | None) -> None:
        """Keep these rows and columns alone; None keeps all."""
        for mask, kept in ((self.rows, rows), (self.columns, columns)):
            mask.fill_(kept is None)
            if kept is not None:
                mask.view(-1)[list(kept)] = True

    def scheme(self) -> TransformRecord:
        """The mask as entries, and its density."""
        mask = self.rows & self.columns
        details = {"pattern": "structured", "density": mask.float().mean().item()}
        return TransformRecord(kind="mask", tensors={"mask": mask}, details=details)


def attach_channel_masks(
    model: nn.Module, structure: Structure, sizes: PruneSizes
) -> dict[str, ChannelMask]:
    """Attach a mask to every weight that pruning to `sizes` will touch.

    Raises:
        UnsupportedModel: layers or hidden width are to go, but biases would keep them alive.
    """
    modules = dict(model.named_modules())
    names = _masked_names(model, structure, sizes)
    if sizes.hidden_density < 1.0 or sizes.layers is not None:
        _refuse_biases(structure, modules)
    masks = {}
    for name in names:
        masks[name] = ChannelMask(modules[name].weight)  # type: ignore[arg-type]
        attach_transform(modules[name], masks[name])
    return masks


def apply_plan(
    model: nn.Module, structure: Structure, plan: PrunePlan, masks: dict[str, ChannelMask]
) -> None:
    """Set the masks to a plan; dropped layers write nothing to the residual stream."""
    cuts = cuts_of(model, structure, plan)
    dropped = set(range(len(structure.layers))) - set(plan.layers)
    silent = {n for i in dropped for n in _writers(structure, i)}
    for name, mask in masks.items():
        cut = cuts.get(name, Cut())
        mask.keep(rows=() if name in silent else cut.rows, columns=cut.columns)


def rank_masked_last(
    scores: Importance, structure: Structure, masks: Mapping[str, ChannelMask]
) -> None:
    """What is masked scores 0, all else more: each plan then lies within the one before.

    A masked head has no query, but averages its values all the same: judged by its output, it
    would come back in exchange for one that has learned.
    """
    for index, layer in enumerate(structure.layers):
        ffn, out = masks.get(layer.ffn_out), masks.get(layer.attention_out or "")
        if ffn is not None:
            _limit(scores.ffn[index], ffn.columns)
            _limit(scores.layers[index : index + 1], ffn.rows)
        if out is not None:
            _limit(scores.heads[index], out.columns)


def _limit(scores: Tensor, mask: Tensor) -> None:
    live = mask.view(len(scores), -1).any(1).to(scores.device)
    least = torch.finfo(scores.dtype).tiny
    scores.copy_(scores.clamp_min(least) * live)


def _masked_names(model: nn.Module, structure: Structure, sizes: PruneSizes) -> list[str]:
    names: list[str] = []
    heads = sizes.heads_density < 1.0 or sizes.kv_density < 1.0
    residual = sizes.hidden_density < 1.0 or sizes.layers is not None
    for index, layer in enumerate(structure.layers):
        if sizes.ffn_density < 1.0:
            names += [*layer.ffn_in, layer.ffn_out]
        if heads and layer.queries and layer.attention_out:
            names += [layer.queries, layer.attention_out]
        if sizes.kv_density < 1.0 and layer.keys and layer.values:
            names += [layer.keys, layer.values]
        if residual:
            names += _writers(structure, index)
    if sizes.hidden_density < 1.0:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        names += [n for n, m in model.named_modules() if m is embedding]
    return list(dict.fromkeys(names))


def _writers(structure: Structure, index: int) -> list[str]:
    """The modules that write to the residual stream."""
    layer = structure.layers[index]
    return [name for name in (layer.attention_out, layer.ffn_out) if name]


def _refuse_biases(structure: Structure, modules: dict[str, nn.Module]) -> None:
    names = [n for i in range(len(structure.layers)) for n in _writers(structure, i)]
    biased = [n for n in names if getattr(modules[n], "bias", None) is not None]
    if biased or not structure.depth_by_mask:
        raise UnsupportedModel(
            f"{structure.model_type}: whole layers and the hidden width cannot be masked away while "  # noqa: E501
            f"training ({len(biased)} biases and norms keep writing): {', '.join(biased[:4])}. "
            "Prune before training instead: compress.prune.build.prune_and_shrink(layers=...)"
        )


def kept_share(structure: Structure, kept: Sequence[Indices], size: int) -> list[float]:
    """Share kept of one width, layer by layer."""
    return [len(indices) / size for indices in kept[: len(structure.layers)]]
