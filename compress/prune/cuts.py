"""What a plan cuts from each module: rows and columns by module name, shared by mask and shrink."""

from dataclasses import dataclass

from torch import Tensor, nn

from compress.prune.plan import Indices, PrunePlan
from compress.prune.structure import LayerNames, Structure


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Rows and columns kept of a weight; None keeps all. `norm` widths are rescaled too."""

    rows: Indices | None = None
    columns: Indices | None = None
    norm: bool = False


def cuts_of(model: nn.Module, structure: Structure, plan: PrunePlan) -> dict[str, Cut]:
    """The cut of every module that loses something, in the dense model's names.

    Layers that are dropped appear as they would be without; whoever drops them looks at the plan.
    """
    hidden = None if len(plan.hidden) == structure.hidden else plan.hidden
    cuts: dict[str, Cut] = {}
    for index, layer in enumerate(structure.layers):
        cuts |= _layer_cuts(structure, plan, index, layer, hidden)
    if hidden is not None:
        cuts |= _residual_cuts(model, structure, hidden, taken=set(cuts))
    return {name: cut for name, cut in cuts.items() if cut.rows or cut.columns}


def _layer_cuts(
    structure: Structure, plan: PrunePlan, index: int, layer: LayerNames, hidden: Indices | None
) -> dict[str, Cut]:
    ffn = _unless_all(plan.ffn[index], structure.ffn)
    cuts = {name: Cut(rows=ffn, columns=hidden) for name in layer.ffn_in}
    cuts[layer.ffn_out] = Cut(rows=hidden, columns=ffn)
    if layer.queries and layer.keys and layer.values and layer.attention_out:
        heads = _wide(_unless_all(plan.heads[index], structure.heads), structure.head_dim)
        groups = _wide(_unless_all(plan.kv_heads[index], structure.kv_heads), structure.head_dim)
        cuts[layer.queries] = Cut(rows=heads, columns=hidden)
        cuts[layer.keys] = cuts[layer.values] = Cut(rows=groups, columns=hidden)
        cuts[layer.attention_out] = Cut(rows=hidden, columns=heads)
    return cuts


def _residual_cuts(
    model: nn.Module, structure: Structure, hidden: Indices, taken: set[str]
) -> dict[str, Cut]:
    """Embeddings, heads and norms along the residual stream."""
    cuts = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or name in taken or weight.shape[-1] != structure.hidden:
            continue
        if isinstance(module, nn.Embedding | nn.Linear):
            cuts[name] = Cut(columns=hidden)
        elif weight.dim() == 1 and not name.endswith(("q_norm", "k_norm")):
            cuts[name] = Cut(rows=hidden, norm=True)
    return cuts


def _unless_all(kept: Indices, size: int) -> Indices | None:
    return None if len(kept) == size else kept


def _wide(heads: Indices | None, head_dim: int) -> Indices | None:
    """Rows of heads, from their numbers."""
    if heads is None:
        return None
    return tuple(head * head_dim + offset for head in heads for offset in range(head_dim))
