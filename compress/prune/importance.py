"""How much each channel, head and layer matters: from weights, activations or gradients.

Legend: B sequences, L positions, F feed-forward channels, Q query heads, D head width,
H hidden width, N layers.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from compress.contract import Batch
from compress.errors import BadInput, did_you_mean
from compress.prune.structure import Structure
from compress.sharding import gathered, whole_weights
from compress.transforms import Stage, trained_weight, weight_before

CRITERIA = ("l1", "activation", "taylor")


@dataclass(kw_only=True)
class Importance:
    """Scores, higher matters more: `ffn` (N, F), `heads` (N, Q), `hidden` (H,), `layers` (N,)."""

    ffn: Tensor
    heads: Tensor
    hidden: Tensor
    layers: Tensor

    @classmethod
    def zeros(cls, structure: Structure) -> "Importance":
        """Nothing seen yet."""
        count = len(structure.layers)
        return cls(
            ffn=torch.zeros(count, structure.ffn),
            heads=torch.zeros(count, structure.heads),
            hidden=torch.zeros(structure.hidden),
            layers=torch.zeros(count),
        )

    def reduced(self, all_reduce: Callable[[Tensor], Tensor]) -> "Importance":
        """Summed over ranks: each saw batches of its own, all must choose the same."""
        return Importance(**{f.name: all_reduce(getattr(self, f.name)) for f in fields(self)})


@torch.no_grad()
def l1_importance(model: nn.Module, structure: Structure) -> Importance:
    """L1 norm of all weights of a channel or head (Li 2017, arXiv 1608.08710); no data needed.

    Weights count as masked: what is pruned already scores zero and stays pruned.
    """
    return _by_weights(
        model, structure, lambda layer: weight_before(layer, Stage.QUANTIZE).abs().float()
    )


@torch.no_grad()
def taylor_importance(model: nn.Module, structure: Structure) -> Importance:
    """|sum of gradient x weight| of a channel or head (Molchanov 2019, arXiv 1906.10771, eq. 8).

    Reads `.grad` as the last backward left it; sum over batches yourself.

    Raises:
        BadInput: a weight has no gradient.
    """

    def products(layer: nn.Module) -> Tensor:
        weight = trained_weight(layer)
        if weight.grad is None:
            raise BadInput("importance=taylor reads gradients, but backward has not run")
        return gathered(weight.grad).float() * gathered(weight).float()

    return _by_weights(model, structure, products, signed=True)


class ActivationWatch:
    """Sums activation magnitudes and block influence over the batches that run through a model.

    Channel: mean |input of the feed-forward's output layer| (Muralidharan 2024, Minitron, eq. 1).
    Head: mean L2 norm of its output. Hidden: mean |layer input| over layers. Layer: block
    influence, 1 - cos(input, output) (Men 2024, ShortGPT, eq. 1).
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        """Opens the hooks; `close` removes them."""
        self.structure, self.batches = structure, 0
        self.sums = Importance.zeros(structure)
        self._inputs: dict[int, Tensor] = {}
        modules = dict(model.named_modules())
        self._handles: list[Any] = []
        for index, layer in enumerate(structure.layers):
            hooks = [(layer.ffn_out, self._see_ffn), (layer.name, self._see_input)]
            if layer.attention_out:
                hooks.append((layer.attention_out, self._see_heads))
            for name, hook in hooks:
                self._handles.append(modules[name].register_forward_pre_hook(_bind(hook, index)))
            self._handles.append(modules[layer.name].register_forward_hook(self._bind_out(index)))

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()

    def _see_ffn(self, index: int, values: Tensor) -> None:
        self._add(self.sums.ffn, index, values.abs().flatten(0, -2).float().mean(0))

    def _see_heads(self, index: int, values: Tensor) -> None:
        rows = values.flatten(0, -2).float()
        heads = rows.view(len(rows), self.structure.heads, -1)
        self._add(self.sums.heads, index, heads.norm(dim=-1).mean(0))

    def _see_input(self, index: int, values: Tensor) -> None:
        self._inputs[index] = values.detach()
        mean = values.detach().abs().flatten(0, -2).float().mean(0)
        self.sums.hidden += mean.to(self.sums.hidden.device)
        self.batches += index == 0

    def _bind_out(self, index: int) -> Callable[..., None]:
        def see(_module: nn.Module, _args: Any, output: Any) -> None:
            after = (output[0] if isinstance(output, tuple) else output).detach().float()
            before = self._inputs.pop(index).float()
            influence = 1.0 - torch.cosine_similarity(before, after, dim=-1).mean()
            self._add(self.sums.layers, index, influence)

        return see

    @staticmethod
    def _add(sums: Tensor, index: int, seen: Tensor) -> None:
        sums[index] += seen.detach().to(sums.device)


@contextmanager
def watched(model: nn.Module, structure: Structure) -> Iterator[ActivationWatch]:
    """An `ActivationWatch` that is closed at the end."""
    watch = ActivationWatch(model, structure)
    try:
        yield watch
    finally:
        watch.close()


def measure(
    model: nn.Module,
    structure: Structure,
    batches: Iterable[Batch],
    *,
    criterion: str = "activation",
    loss: Callable[[nn.Module, Batch], Tensor] | None = None,
) -> Importance:
    """Importance over some batches; layers always by block influence.

    Args:
        model: run in eval mode; its gradients are cleared afterwards where `taylor` made them.
        structure: of this model.
        batches: calibration data.
        criterion: `l1`, `activation` or `taylor`.
        loss: for `taylor`; None takes the model's own.

    Raises:
        BadInput: the criterion is unknown, or there are no batches.
    """
    check_criterion(criterion)
    device = next(model.parameters()).device
    training, total = model.training, Importance.zeros(structure)
    model.eval()
    with (
        watched(model, structure) as watch,
        torch.set_grad_enabled(criterion == "taylor"),
        torch.compiler.set_stance("force_eager"),  # hooks set after compiling would not fire
    ):
        for rows in batches:
            batch = {key: value.to(device) for key, value in rows.items()}
            if criterion == "taylor":
                model.zero_grad()
                (loss or _own_loss)(model, batch).backward()  # type: ignore[no-untyped-call]
                total = _added(total, taylor_importance(model, structure))
            else:
                model(**batch)
    model.train(training)
    if not watch.batches:
        raise BadInput("importance needs at least one batch of data")
    if criterion == "taylor":
        model.zero_grad()
    elif criterion == "l1":
        with whole_weights(model):
            total = l1_importance(model, structure)
    else:
        total = watch.sums
    total.layers = watch.sums.layers
    return total


def check_criterion(criterion: str) -> str:
    """The word itself.

    Raises:
        BadInput: it is none of `CRITERIA`.
    """
    if criterion not in CRITERIA:
        hint = did_you_mean(criterion, CRITERIA)
        raise BadInput(
            f"importance={criterion!r} is unknown.{hint} Use one of {', '.join(CRITERIA)}"
        )
    return criterion


def _own_loss(model: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def _added(a: Importance, b: Importance) -> Importance:
    return Importance(
        **{f.name: getattr(a, f.name) + getattr(b, f.name).cpu() for f in fields(Importance)}
    )


def _bind(hook: Callable[[int, Tensor], None], index: int) -> Callable[..., None]:
    def see(_module: nn.Module, args: Any) -> None:
        hook(index, args[0])

    return see


def _by_weights(
    model: nn.Module,
    structure: Structure,
    score: Callable[[nn.Module], Tensor],
    *,
    signed: bool = False,
) -> Importance:
    """Sums `score(layer)` over each channel's and head's entries; |sum| of signed products."""
    modules, result = dict(model.named_modules()), Importance.zeros(structure)
    finish = torch.abs if signed else (lambda value: value)

    def scores(name: str) -> Tensor:
        return score(modules[name]).cpu()

    for index, layer in enumerate(structure.layers):
        ffn_out = scores(layer.ffn_out)
        # a product of gradient and weight counts a path once: take the side it leaves by
        ins = [] if signed else [scores(name).sum(1) for name in layer.ffn_in]
        result.ffn[index] = finish(ffn_out.sum(0) + sum(ins))
        result.hidden += finish(ffn_out.sum(1))
        if layer.attention_out and layer.queries:
            out = scores(layer.attention_out)
            heads = out.sum(0).view(structure.heads, -1).sum(1)
            if not signed:
                heads = heads + scores(layer.queries).sum(1).view(structure.heads, -1).sum(1)
            result.heads[index] = finish(heads)
            result.hidden += finish(out.sum(1))
    return result
