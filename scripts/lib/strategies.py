"""How several devices share a training: DDP, FSDP2, DeepSpeed; and which runs may use which."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from compress.errors import did_you_mean
from compress.scripts.lib.launch import devices_of

CUDA_ONLY = {"fsdp2": "FSDP2", "deepspeed_zero2": "DeepSpeed ZeRO-2", "deepspeed_zero3": "DeepSpeed ZeRO-3"}  # noqa: E501  # fmt: skip
SHARDED = ("fsdp2", "deepspeed_zero3")
KNOWN = ("auto", "ddp", *CUDA_ONLY)
PATIENCE = timedelta(hours=1)
"""Rank 0 measures and calibrates alone while the others wait at a collective."""


def strategy_problems(config: Any) -> Iterator[str]:
    """What speaks against `trainer.strategy` here; imports torch for those that need CUDA alone."""
    trainer = config.trainer
    if trainer.strategy not in KNOWN:
        hint = did_you_mean(str(trainer.strategy), KNOWN)
        yield f"trainer.strategy={trainer.strategy}: unknown.{hint} There are: {', '.join(KNOWN)}"
    if trainer.strategy not in CUDA_ONLY:
        return
    name = CUDA_ONLY[trainer.strategy]
    if not _has_cuda():
        yield (
            f"trainer={trainer.strategy}: {name} shards a student over CUDA GPUs, and there is "
            "none here. On CPUs use trainer=ddp; a teacher can be sharded there: "
            "teacher.host=deepspeed"
        )
    yield from _callback_problems(config, name)
    if trainer.strategy in SHARDED and _has_cuda():
        yield (
            f"trainer={trainer.strategy}: a run ends by measuring and exporting a whole student on "
            f"rank 0, and gathering one that {name} sharded is not offered yet: use "
            "trainer=deepspeed_zero2, which shares out gradients and optimizer"
        )


def _callback_problems(config: Any, name: str) -> Iterator[str]:
    """Callbacks that look at whole weights between steps."""
    whole = [
        key for key, settings in config.callbacks.items()
        if "istillation" not in str(settings.get("_target_"))
    ]  # fmt: skip
    if whole and config.trainer.strategy in SHARDED:
        yield (
            f"trainer={config.trainer.strategy}: {name} leaves no rank a whole weight, and "
            f"callbacks.{', callbacks.'.join(whole)} calibrate or prune whole ones: use "
            "trainer=ddp or trainer=deepspeed_zero2, which share out gradients and optimizer alone"
        )


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def build_strategy(trainer: Any) -> Any:
    """What Lightning is told."""
    from lightning.pytorch import strategies

    if trainer.strategy == "ddp":
        # scales do not learn before qat.start_step: some steps leave parameters without gradient
        return strategies.DDPStrategy(find_unused_parameters=True, timeout=PATIENCE)
    if trainer.strategy == "fsdp2":
        return strategies.ModelParallelStrategy(
            data_parallel_size=trainer.num_nodes * devices_of(trainer), tensor_parallel_size=1,
            timeout=PATIENCE,
        )  # fmt: skip
    if trainer.strategy in CUDA_ONLY:
        stage = int(trainer.strategy[-1])
        return strategies.DeepSpeedStrategy(stage=stage, timeout=PATIENCE)
    return trainer.strategy
