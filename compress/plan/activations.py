"""Activations, counted: what autograd keeps, and the most that lives at once.

The model's own code runs on fake tensors, so whatever it saves is counted, neither more nor less.

Legend: B sequences, L positions.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import UnsupportedModel
from compress.plan.fakes import FakeModel, fake_model

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}
"""Lightning's word -> dtype of the parameters."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that operations made and that are alive, and the most there were.

    Works on fake and on real tensors, so that the one can be checked against the other.
    """

    def __init__(self) -> None:
        """Nothing is alive yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note what it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def ignore(self, module: nn.Module) -> None:
        """Parameters and buffers are there already: in-place operations return them."""
        tensors = [*module.parameters(), *module.buffers()]
        self._known |= {t.untyped_storage()._cdata for t in tensors}

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def saved_bytes(
    config: Any, *, batch: int, length: int, precision: str = "bf16-mixed",
    quantized_inputs: bool = False, checkpointing: bool = False,
) -> int:  # fmt: skip
    """Bytes that the backward pass of the backbone needs, beside the parameters.

    Under `bf16-mixed` they include autocast's 16-bit copies of the weights.

    Args:
        config: of transformers.
        batch: sequences on one device.
        length: tokens of each.
        precision: Lightning's word: `32-true`, `bf16-mixed` or `bf16-true`.
        quantized_inputs: every linear layer also keeps its own rounded input (W8A8 and the like).
        checkpointing: each block keeps its input alone, and one block what it saves when redone.

    Raises:
        UnsupportedModel: it is a mixture of experts: no student.
    """
    model = fake_model(config, dtype=DTYPES[precision])
    if model.routed:
        raise UnsupportedModel(
            f"{type(model.module).__name__}: mixtures of experts can be teachers, not students: "
            "plan it with teacher= beside a dense student, or train=false"
        )
    counts = {"batch": batch, "length": length, "autocast": precision == "bf16-mixed"}
    saved, rounded = _saved(model, **counts)
    total = saved + (rounded if quantized_inputs else 0)
    if checkpointing:
        text = config.get_text_config()
        size = 2 if precision == "bf16-true" else 4  # autocast leaves the residual stream in fp32
        inputs = text.num_hidden_layers * batch * length * text.hidden_size * size
        total = inputs + -(-total // text.num_hidden_layers)
    return total


def transient_bytes(config: Any, *, batch: int, length: int) -> int:
    """The most that a forward pass in bfloat16 without gradients holds at once."""
    model = fake_model(config)
    model.module.eval()
    live = LiveBytes()
    live.ignore(model.module)
    with torch.no_grad(), model.mode, live:
        model.run(batch=batch, length=length)
    return live.peak


def _saved(model: FakeModel, **counts: Any) -> tuple[int, int]:
    """Bytes saved for backward, and bytes of every linear layer's input."""
    module = model.module.train()
    parameters = {p.untyped_storage()._cdata for p in module.parameters()}
    seen: dict[int, tuple[Any, int]] = {}
    inputs = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            seen[storage._cdata] = (storage, storage.nbytes())  # held, so that no address recurs
        return tensor

    def entered(layer: nn.Module, args: Any) -> None:
        size = 2 if counts["autocast"] else args[0].element_size()
        inputs[0] += args[0].numel() * size

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(entered) for layer in layers]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.run(**counts)
    for hook in hooks:
        hook.remove()
    return sum(size for _, size in seen.values()), inputs[0]
