"""Taps: outputs of named modules, caught by forward hooks while the model runs."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.errors import BadInput, did_you_mean


class Taps:
    """Catches the output of modules by dotted name until the next `take`.

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
        modules = dict(self._model.named_modules())
        unknown = [name for name in names if name not in modules]
        if unknown:
            hint = did_you_mean(unknown[0], list(modules))
            raise BadInput(
                f"no module of the model is called {', '.join(map(repr, unknown))}.{hint}"
            )
        for name in names:
            if name not in self._handles:
                self._handles[name] = modules[name].register_forward_hook(self._catch(name))

    def take(self) -> dict[str, Tensor]:
        """What was caught since the last call; forgets it."""
        caught, self._caught = self._caught, {}
        return caught

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _catch(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._caught[name] = output[0] if isinstance(output, tuple) else output

        return hook


def taps_of(model: nn.Module) -> Taps:
    """The model's own taps, made at the first call; they are no part of its state."""
    if not hasattr(model, "_compress_taps"):
        object.__setattr__(model, "_compress_taps", Taps(model))
    return model._compress_taps  # type: ignore[return-value]
