"""Taps: outputs of named modules, caught by forward hooks while the model runs."""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.errors import BadInput, did_you_mean

EMBEDDING = "embedding"
"""The feature that is no module's: a sequence's embedding, as `task=embedding` makes it."""


def module_name(name: str) -> str:
    """The module of a tap: `a.b:1` is the second of what `a.b` gives (its attention map, say).

    >>> module_name("layer.0.attention.self:1"), module_name("layer.0")
    ('layer.0.attention.self', 'layer.0')
    """
    return name.partition(":")[0]


class Taps:
    """Catches the output of modules by dotted name until the next `take`.

    Of modules that give several, the first; `name:1` catches the second, and so on.

    Hooks added after the first compiled call never fire: open taps before compiling.

    >>> model = nn.Sequential(nn.Linear(2, 3))
    >>> taps = Taps(model); taps.open(["0"])
    >>> _ = model(model[0].weight.new_ones(1, 2))
    >>> taps.take()["0"].shape
    torch.Size([1, 3])
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._caught = model, dict[str, Tensor]()
        self._handles: dict[str, RemovableHandle] = {}

    def open(self, names: Iterable[str]) -> None:
        """Start catching these modules; names tapped already stay as they are.

        Raises:
            BadInput: a name is no module of the model.
        """
        names = [name for name in names if name != EMBEDDING]
        modules = dict(self._model.named_modules())
        unknown = [name for name in names if module_name(name) not in modules]
        if unknown:
            hint = did_you_mean(module_name(unknown[0]), list(modules))
            raise BadInput(
                f"no module of the model is called {', '.join(map(repr, unknown))}.{hint}"
            )
        for name in names:
            if name not in self._handles:
                module = modules[module_name(name)]
                # bound to these taps: a copied model's hooks are bound to its own
                hook = partial(self._catch, name)
                self._handles[name] = module.register_forward_hook(hook)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Taps":
        """Those of the copied model, empty: what was caught belongs to the original's forward."""
        memo[id(self)] = copied = Taps(copy.deepcopy(self._model, memo))
        copied._handles = copy.deepcopy(self._handles, memo)
        return copied

    def take(self) -> dict[str, Tensor]:
        """What was caught since the last call; forgets it."""
        caught, self._caught = self._caught, {}
        return caught

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _catch(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        index = int(name.partition(":")[2] or 0)
        outputs = output if isinstance(output, tuple) else (output,)
        if index >= len(outputs) or outputs[index] is None:
            raise BadInput(
                f"{name}: the module gives {len(outputs)} outputs, and none at {index}; "
                "attention maps exist under attn_implementation='eager' alone"
            )
        self._caught[name] = outputs[index]


def taps_of(model: nn.Module) -> Taps:
    """The model's own taps, made at the first call; they are no part of its state."""
    if not hasattr(model, "_compress_taps"):
        object.__setattr__(model, "_compress_taps", Taps(model))
    return model._compress_taps  # type: ignore[return-value]
