"""FSDP2 in a Lightning run: the student is built whole, sharded, and saved as on one rank.

A checkpoint is the one file that any other trainer writes, so that a run goes on with another
number of ranks, under another trainer, and is exported from it later.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy

from compress.sharding import Sharding, gathered, is_shard, shared_out


class ShardedStrategy(ModelParallelStrategy):
    """Shares weights, gradients and optimizer out over all ranks.

    A checkpoint's weights are taken over before the student is sharded, its optimizer after.
    Calibration comes later still, and sees whole weights by `compress.sharding.whole_weights`.
    """

    restore_checkpoint_after_setup = False
    lightning_restore_optimizer = True

    def setup(self, trainer: Any) -> None:
        """Shards the student (and what learns beside it), then makes the optimizer."""
        module = self.lightning_module
        assert self.accelerator is not None and module is not None
        self.accelerator.setup(trainer)
        beside = [
            child for child in module.children()
            if child is not module.student and any(True for _ in child.parameters())
        ]  # fmt: skip
        Sharding(module.student, self.device_mesh["data_parallel"], beside=beside)
        self.model = self.precision_plugin.convert_module(module)
        self.model_to_device()
        self.barrier()
        self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights on rank 0, nothing elsewhere; gathered one by one."""
        assert self.lightning_module is not None
        return self._collected(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Whole moments on rank 0, under the numbers that an unsharded optimizer gives them."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = inner.state_dict()
        kept = {number: self._collected(one) for number, one in state["state"].items()}
        return {"state": kept, "param_groups": state["param_groups"]}

    def _collected(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        collected = {}
        for name, value in tensors.items():
            whole = gathered(value) if is_shard(value) else value  # every rank takes part
            if self.is_global_zero:
                collected[name] = whole.cpu() if is_shard(value) else whole
        return collected

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Into a student that is whole still."""
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank takes its share of the moments."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {key: _like(value, parameters[number]) for key, value in one.items()}
                for number, one in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def save_checkpoint(self, checkpoint: Any, filepath: Any, storage_options: Any = None) -> None:
        """One file, by rank 0, as every other strategy."""
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """The whole file, on every rank."""
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)


def _like(value: Any, parameter: Any) -> Any:
    moment = isinstance(value, torch.Tensor) and value.shape == parameter.shape
    return shared_out(value, parameter) if moment and is_shard(parameter) else value
