"""One rank of a DDP training under every kind of callback (started by torchrun).

torchrun --nproc-per-node=2 -m tests.two_ranks_child
"""

import hashlib
from types import SimpleNamespace

import torch
from omegaconf import OmegaConf

from compress.callbacks import (
    DynamicSparsity,
    FeatureDistillation,
    QuantizationAwareTraining,
    RoutedDistillation,
)
from compress.scripts.lib import trainer
from compress.scripts.lib.config import recipes_folder
from compress.teachers.local import LocalTeacher
from tests.tiny import TinyData, tiny_llama


class UnevenData(TinyData):
    """Odd rows teach little: with rows dealt out by turns, ranks have unequal difficulties."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        labels = row["labels"].clone()
        labels[: len(labels) - 3 if index % 2 else 1] = -100
        return {**row, "labels": labels}


def settings():
    made = OmegaConf.load(recipes_folder() / "trainer" / "ddp.yaml")
    made.update(max_steps=8, batch_size=4, validate_every=4, precision="32-true")
    return made


def main() -> None:
    torch.set_num_threads(1)
    training = OmegaConf.load(recipes_folder() / "training" / "default.yaml")
    steps = []

    class Counted(LocalTeacher):
        def signal(self, batch, want):
            steps.append(len(batch["input_ids"]))
            return super().signal(batch, want)

    routed = RoutedDistillation(capacities={"full": 0.5}, audit_share=0.25)
    module = trainer.train(
        student=tiny_llama(layers=2, seed=1), teacher=Counted(tiny_llama(layers=3)),
        data=SimpleNamespace(train=UnevenData(rows=96), validation=TinyData(rows=16, seed=5)),
        trainer=settings(), training=training, loggers=[], seed=0, verbose=False,
        callbacks=[
            DynamicSparsity(density=0.5, stop=6, every=2, growth="random"),
            QuantizationAwareTraining(start_step=3),
            routed, FeatureDistillation(),
        ],
    )  # fmt: skip
    rank, state = torch.distributed.get_rank(), module.state_dict()
    scales = {
        name: tensor for name, tensor in state.items() if "scale" in name or "log_step" in name
    }
    masks = {name: tensor for name, tensor in state.items() if "mask" in name}
    print(
        f"rank {rank} student {digest_of(state)} calls {len(steps)} "
        f"scales {len(scales)} {digest_of(scales)} masks {len(masks)} {digest_of(masks)}\n",
        end="", flush=True,
    )  # fmt: skip


def digest_of(tensors):
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
