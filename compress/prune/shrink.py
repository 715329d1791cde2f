"""Physical shrinking: a masked model becomes a smaller Hugging Face model with the same logits.

Legend: O outputs, I inputs of a weight, H hidden width before, S after.
"""

import copy
import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModel, UnsupportedScheme
from compress.prune.channel_masks import ChannelMask
from compress.prune.cuts import Cut, cuts_of
from compress.prune.importance import Importance
from compress.prune.plan import Indices, PrunePlan, PruneSizes, make_plan
from compress.prune.structure import Structure, structure_of
from compress.sharding import whole_weights
from compress.transforms import (
    INPUT_QUANTIZER,
    KV_QUANTIZER,
    Stage,
    WeightTransform,
    attach_input_quantizer,
    attach_transform,
    plain_state_dict,
    transformed_layers,
    transforms_of,
    weight_before,
)


@torch.no_grad()
def shrink(model: nn.Module, plan: PrunePlan) -> nn.Module:
    """A smaller model of the same class, with what `plan` keeps; `model` is left untouched.

    Its config.json agrees with its shapes. Weights are taken as masked and before quantisers; then
    masks and quantisers are carried over, their tensors cut alike. RMSNorm divides by the mean over
    fewer channels: its weight is scaled by sqrt(H / S) and its epsilon by H / S, which is exact.

    Raises:
        UnsupportedScheme: widths differ between layers, or a cut splits a quantiser's group.
    """
    plan.check()
    structure = structure_of(model)
    cuts = cuts_of(model, structure, plan)
    renamed = _renamer(structure, plan)
    transforms = _carried(model, cuts)
    state = _cut_state(_dense_state(model), cuts, structure, plan)
    small = _build(model, shrunk_config(model.config, structure, plan), state)
    modules = dict(small.named_modules())
    for name, (chain, input_quantizer) in transforms.items():
        if (new := renamed(name)) is None:
            continue
        for transform in chain:
            attach_transform(modules[new], transform)
        if input_quantizer is not None:
            attach_input_quantizer(modules[new], input_quantizer)
    return small.train(model.training)


@torch.no_grad()
def check_cuts(model: nn.Module, structure: Structure, sizes: PruneSizes) -> None:
    """Prove before training that a cut to `sizes` gives a model, whatever stays.

    Raises:
        UnsupportedScheme: groups of quantisers or sparsity patterns would be split; lists them.
        UnsupportedModel: parameters follow a width in a way that is not known; lists them.
    """
    generator = torch.Generator().manual_seed(0)
    scores = Importance.zeros(structure)
    for part in fields(scores):
        values = getattr(scores, part.name)
        values.copy_(torch.rand(values.shape, generator=generator))
    plan = make_plan(structure, scores, sizes)
    with whole_weights(model):
        cuts = cuts_of(model, structure, plan)
        _carried(model, cuts)
    dense = plain_state_dict(model, transformed=False)
    random = torch.get_rng_state()
    with torch.device("meta"):  # shapes alone: neither values nor memory
        state = {name: torch.empty(tensor.shape) for name, tensor in dense.items()}
        small: nn.Module = type(model)(shrunk_config(model.config, structure, plan))
        _refuse_other_shapes(small, _cut_state(state, cuts, structure, plan))
    torch.set_rng_state(random)


def shrunk_config(config: Any, structure: Structure, plan: PrunePlan) -> Any:
    """The configuration with the plan's widths; all else as it was."""
    small = copy.deepcopy(config)
    first = plan.layers[0]
    small.num_hidden_layers = len(plan.layers)
    small.intermediate_size = len(plan.ffn[first])
    if getattr(small, "layer_types", None):
        small.layer_types = [small.layer_types[index] for index in plan.layers]
    if structure.layers[0].queries is None:
        return small
    small.num_attention_heads = len(plan.heads[first])
    small.num_key_value_heads = len(plan.kv_heads[first])
    small.head_dim = structure.head_dim
    if len(plan.hidden) != structure.hidden:
        small.rms_norm_eps = small.rms_norm_eps * structure.hidden / len(plan.hidden)
        small.hidden_size = len(plan.hidden)
    return small


def _build(model: nn.Module, config: Any, state: dict[str, Tensor]) -> nn.Module:
    random = torch.get_rng_state()  # building draws numbers that are thrown away
    small: nn.Module = type(model)(config)
    torch.set_rng_state(random)
    some = next(iter(model.parameters()))
    small.to(device=some.device, dtype=some.dtype)
    _refuse_other_shapes(small, state)
    small.load_state_dict(state, strict=True)
    if hasattr(model, "generation_config"):
        small.generation_config = copy.deepcopy(model.generation_config)
    return small


def _refuse_other_shapes(small: nn.Module, state: dict[str, Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()}
    cut = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [n for n in {**expected, **cut} if expected.get(n) != cut.get(n)]
    if wrong:
        lines = "\n".join(
            f"  {n}   {cut.get(n, 'none')} is left, {expected.get(n, 'none')} is needed"
            for n in wrong[:4]
        )
        more = f"\n  and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UnsupportedModel(
            f"{type(small).__name__}: {len(wrong)} parameters would not fit the pruned model:\n"
            f"{lines}{more}\nThey follow a width that is cut in a way of their own: leave that one "
            "whole (heads_density=1, kv_density=1, hidden_density=1), and prune ffn_density or "
            "layers"
        )


def _cut_state(
    state: dict[str, Tensor], cuts: dict[str, Cut], structure: Structure, plan: PrunePlan
) -> dict[str, Tensor]:
    """The smaller model's state dict from the dense one's."""
    renamed = _renamer(structure, plan)
    return {
        new: _cut_tensor(key, value, cuts, structure, plan)
        for key, value in state.items()
        if (new := renamed(key)) is not None
    }


def _dense_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights masked but not quantised, under plain names."""
    state = plain_state_dict(model, transformed=False)
    for name, layer in transformed_layers(model):
        if transforms_of(layer):
            state[f"{name}.weight"] = weight_before(layer, Stage.QUANTIZE).detach()
    return state


def _renamer(structure: Structure, plan: PrunePlan) -> Any:
    """Old name -> new name; None for what a dropped layer had."""
    places = {str(old): str(new) for new, old in enumerate(plan.layers)}
    prefix = structure.layer_list + "."

    def rename(name: str) -> str | None:
        if not name.startswith(prefix):
            return name
        index, _, rest = name.removeprefix(prefix).partition(".")
        return f"{prefix}{places[index]}.{rest}" if index in places else None

    return rename


def _cut_tensor(
    key: str, value: Tensor, cuts: dict[str, Cut], structure: Structure, plan: PrunePlan
) -> Tensor:
    cut = cuts.get(key.rpartition(".")[0])
    if cut is None:
        return value
    if cut.rows is not None:
        value = value[list(cut.rows)]
    if cut.columns is not None and value.dim() == 2:
        value = value[:, list(cut.columns)]
    if cut.norm:
        value = value * math.sqrt(structure.hidden / len(plan.hidden))
    return value


Carried = dict[str, tuple[list[WeightTransform], Any]]


def _carried(model: nn.Module, cuts: dict[str, Cut]) -> Carried:
    """Cut copies of every transform but the structured masks, which have done their work."""
    if any(hasattr(module, KV_QUANTIZER) for module in model.modules()):
        raise UnsupportedScheme(
            "quantised keys and values do not follow a model that shrinks: leave the quantiser's "
            "kv_cache null, or prune in a run of its own first"
        )
    carried: Carried = {}
    memo: dict[int, Any] = {}  # one for all: what layers share (scales, roundings) stays shared
    problems: list[str] = []
    for name, layer in transformed_layers(model):
        cut, chain = cuts.get(name, Cut()), []
        for transform in transforms_of(layer):
            if isinstance(transform, ChannelMask) or transform.stage == Stage.ADAPT:
                continue  # an adapter is part of the dense weight already
            try:
                shape = tuple(layer.weight.shape)  # type: ignore[union-attr, arg-type]
                chain.append(cut_transform(transform, cut, shape, memo=memo))
            except UnsupportedScheme as error:
                problems.append(f"  {name}   {error}")
        carried[name] = (chain, copy.deepcopy(getattr(layer, INPUT_QUANTIZER, None), memo))
    if problems:
        raise UnsupportedScheme(
            f"pruning splits groups of {len(problems)} layers:\n" + "\n".join(problems) + "\n"
            "Set the pruning callback's block= to a multiple of the quantiser's group_size and of "
            "the sparsity pattern's group"
        )
    return carried


def cut_transform(
    transform: WeightTransform,
    cut: Cut,
    shape: tuple[int, ...],
    *,
    memo: dict[int, Any] | None = None,
) -> WeightTransform:
    """A copy whose tensors are cut as the weight (O, I) is: by entry, channel, group or not at all.

    Args:
        transform: left untouched.
        cut: rows and columns kept.
        shape: of the weight before.
        memo: of `copy.deepcopy`: copies made with the same one share what the originals share.

    Raises:
        UnsupportedScheme: the cut leaves parts of groups.
    """
    copied = copy.deepcopy(transform, memo)
    for kept, run in zip((cut.rows, cut.columns), copied.runs, strict=True):
        if kept is not None:
            _whole_runs(kept, run, what="pattern")
    for store in (copied._parameters, copied._buffers):
        for name, tensor in list(store.items()):
            if tensor is None or tensor.dim() != 2:
                continue  # one number for the whole weight
            value = tensor.detach()
            for dim, kept in enumerate((cut.rows, cut.columns)):
                if kept is not None:
                    value = _cut_dim(value, dim, kept, shape[dim])
            learned = isinstance(tensor, nn.Parameter)
            store[name] = nn.Parameter(value) if learned else value  # type: ignore[assignment]
    return copied


def _cut_dim(value: Tensor, dim: int, kept: Indices, size: int) -> Tensor:
    """Keep `kept` of `size` places along a dimension in which each number may serve a group."""
    numbers = value.shape[dim]
    if numbers == 1:
        return value
    groups = _whole_runs(kept, size // numbers, what="group_size")
    return value.index_select(dim, torch.tensor(groups, device=value.device))


def _whole_runs(kept: Indices, run: int, *, what: str) -> Indices:
    """The numbers of the runs of `run` neighbours that `kept` is made of."""
    runs = tuple(index // run for index in kept[::run])
    if tuple(r * run + offset for r in runs for offset in range(run)) != kept:
        raise UnsupportedScheme(f"{what}={run}, but the kept channels do not come in {run}s")
    return runs
