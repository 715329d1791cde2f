"""How several devices share a training: DDP, FSDP2, DeepSpeed; and which runs may use which."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from compress.errors import did_you_mean
from compress.scripts.lib.launch import devices_of

CUDA_ONLY = {"deepspeed_zero2": "DeepSpeed ZeRO-2", "deepspeed_zero3": "DeepSpeed ZeRO-3"}
KNOWN = ("auto", "ddp", "fsdp2", *CUDA_ONLY)
PATIENCE = timedelta(hours=1)
"""Rank 0 measures and calibrates alone while the others wait at a collective."""


def strategy_problems(config: Any) -> Iterator[str]:
    """What speaks against `trainer.strategy` here; imports torch for those that need CUDA alone."""
    trainer = config.trainer
    if trainer.strategy not in KNOWN:
        hint = did_you_mean(str(trainer.strategy), KNOWN)
        yield f"trainer.strategy={trainer.strategy}: unknown.{hint} There are: {', '.join(KNOWN)}"
    if trainer.strategy == "fsdp2":
        yield from _fsdp2_problems(config)
    if trainer.strategy == "deepspeed_zero3":
        yield (
            "trainer=deepspeed_zero3: gathering a student that DeepSpeed ZeRO-3 sharded, to "
            "measure and export it, was never run and is not offered: use trainer=fsdp2, which "
            "shares out the same (weights, gradients, optimizer), on CUDA GPUs and on CPUs"
        )
    elif trainer.strategy in CUDA_ONLY and not _has_cuda():
        yield (
            f"trainer={trainer.strategy}: {CUDA_ONLY[trainer.strategy]} works on CUDA GPUs alone, "
            "and there is none here: on CPUs use trainer=ddp, or trainer=fsdp2 "
            "trainer.accelerator=cpu; a teacher can be sharded there: teacher.host=deepspeed"
        )


def _fsdp2_problems(config: Any) -> Iterator[str]:
    trainer = config.trainer
    if trainer.accelerator in ("gpu", "cuda") and not _has_cuda():
        yield (
            f"trainer.accelerator={trainer.accelerator}: trainer=fsdp2 finds no CUDA GPU here; on "
            "CPUs add trainer.accelerator=cpu and, say, trainer.devices=2"
        )
    if trainer.precision not in ("auto", "32-true", "bf16-mixed"):
        yield (
            f"trainer.precision={trainer.precision}: trainer=fsdp2 keeps fp32 weights and "
            "computes in bf16-mixed or 32-true; the others were never run: use one of these, or "
            "trainer=ddp"
        )
    if config.training.compile:
        yield (
            "training.compile=true: compiling the blocks of a student that trainer=fsdp2 shares "
            "out was never run: leave it false, or use trainer=ddp"
        )
    for key, settings in config.callbacks.items():
        if settings.get("policy") == "rollback":
            yield (
                f"callbacks.{key}.policy=rollback: a snapshot needs the whole student on each "
                "rank, and trainer=fsdp2 leaves it a share: use policy=skip"
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
        from compress.scripts.lib.sharded_strategy import ShardedStrategy

        return ShardedStrategy(
            data_parallel_size=trainer.num_nodes * devices_of(trainer), tensor_parallel_size=1,
            timeout=PATIENCE,
        )  # fmt: skip
    if trainer.strategy in CUDA_ONLY:
        stage = int(trainer.strategy[-1])
        return strategies.DeepSpeedStrategy(stage=stage, timeout=PATIENCE)
    return trainer.strategy
