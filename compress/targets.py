"""Choosing layers by name pattern: the same words in every callback (`include`, `exclude`)."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from compress.errors import BadInput, UnsupportedModel, did_you_mean

EXPERT_DIMENSIONS = 3
"""Experts, rows and columns of the one tensor that transformers 5 keeps them in."""


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted module name fits one of the shell-style patterns.

    >>> matches("model.layers.3.mlp.down_proj", ["*down_proj"])
    True
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def as_patterns(patterns: str | Iterable[str] | None) -> list[str]:
    """One pattern, several, or none, as a list (`'*a,*b'` is two).

    >>> as_patterns("*q_proj, *k_proj")
    ['*q_proj', '*k_proj']
    """
    if patterns is None:
        return []
    listed = patterns.split(",") if isinstance(patterns, str) else patterns
    if not isinstance(listed, Iterable) or not all(isinstance(one, str) for one in listed):
        raise BadInput(f"{patterns!r}: a name pattern such as '*down_proj', or a list, is expected")
    return [pattern.strip() for pattern in listed if pattern.strip()]


def output_head_name(model: nn.Module) -> str | None:
    """The dotted name of the output projection to the vocabulary, if the model has one."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get else None
    return next((n for n, m in model.named_modules() if m is head), None) if head else None


def choose_layers(
    model: nn.Module,
    *,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] | None = None,
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
    with_head: bool = False,
) -> dict[str, nn.Module]:
    """The layers of these kinds whose names fit `include` and not `exclude`, in model order.

    Args:
        model: where to look.
        include: pattern(s); `"*"` takes every layer of the kind.
        exclude: pattern(s) taken out again.
        kinds: layer classes (subclasses count).
        with_head: whether the output head may be chosen; off, as every runtime expects.

    Raises:
        BadInput: a pattern fits no layer of these kinds (a typing error would pass unseen).
        UnsupportedModel: no layer is left, or most of a mixture of experts is no layer.
    """
    if nn.Linear in kinds:
        _refuse_experts(model)
    head = output_head_name(model)
    named = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, kinds) and (with_head or name != head)
    }
    wanted, unwanted = as_patterns(include), as_patterns(exclude)
    _refuse_idle(wanted + unwanted, [*named, *([head] if head else [])])
    chosen = {n: m for n, m in named.items() if matches(n, wanted) and not matches(n, unwanted)}
    if not chosen:
        others = sorted({type(m).__name__ for m in model.modules() if _own_matrix(m)})
        raise UnsupportedModel(
            f"{type(model).__name__}: no {' or '.join(k.__name__ for k in kinds)} is left to "
            f"compress besides the head (include={wanted}, exclude={unwanted}); its weights lie in "
            f"{', '.join(others) or 'nothing'}"
        )
    return chosen


def _own_matrix(module: nn.Module) -> bool:
    return any(p.dim() > 1 for p in module.parameters(recurse=False))


def _refuse_experts(model: nn.Module) -> None:
    """Experts that lie in one tensor are no layers: they would stay dense without a word."""
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    stacked = {
        f"{name}.{key}": weight
        for name, module in model.named_modules()
        if not isinstance(module, convolutions)
        for key, weight in module.named_parameters(recurse=False)
        if weight.dim() == EXPERT_DIMENSIONS
    }
    if stacked:
        held = sum(weight.numel() for weight in stacked.values())
        share = held / sum(p.numel() for p in model.parameters())
        first, weight = next(iter(stacked.items()))
        raise UnsupportedModel(
            f"{type(model).__name__}: {len(stacked)} tensors of stacked experts hold {share:.0%} "
            f"of the weights (first: {first} {tuple(weight.shape)}) and would stay dense, while a "
            "runtime takes them for compressed; mixtures of experts can be teachers, not students"
        )


def _refuse_idle(patterns: list[str], names: list[str]) -> None:
    idle = [p for p in patterns if not any(matches(name, [p]) for name in names)]
    if idle:
        listed = ", ".join(repr(p) for p in idle)
        hint = did_you_mean(idle[0], sorted({f"*{n.rpartition('.')[2]}" for n in names}))
        raise BadInput(f"no layer has a name that fits {listed}.{hint} Layers: {names[:8]} ...")
