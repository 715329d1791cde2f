"""One of two ranks of a Hugging Face Trainer whose student learns from a wider teacher.

torchrun --nproc-per-node=2 -m tests.integrations.trainer_rank FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from compress.callbacks import (
    DynamicSparsity,
    FeatureDistillation,
    QuantizationAwareTraining,
    StructuredPruning,
)
from tests.integrations.test_transformers import StopAt, state_of, trainer_of


def trained(folder, *, until=6, resume=None):
    trainer = trainer_of(
        folder, steps=6, gradient_accumulation_steps=2, max_grad_norm=0.5,
        compression=[
            StructuredPruning(ffn_density=0.5, start=1, stop=3, every=1, round_to=1),
            DynamicSparsity(density=0.5, start=0, stop=5, every=2, growth="gradient"),
            QuantizationAwareTraining(scheme="W8A8"), FeatureDistillation(),
        ],
    )  # fmt: skip
    trainer.add_callback(StopAt(until))
    trainer.train(resume_from_checkpoint=resume)
    return state_of(trainer)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    whole = trained(folder / "whole")
    trained(folder / "halves", until=4)
    resumed = trained(folder / "halves", resume=str(folder / "halves" / "checkpoint-4"))
    others = [None, None]
    dist.all_gather_object(others, whole)
    assert any("features_projectors" in key for key in whole)
    for key, value in whole.items():
        assert torch.equal(value, others[1 - dist.get_rank()][key]), f"ranks differ: {key}"
        assert torch.equal(value, resumed[key]), f"resume differs: {key}"
    print(f"rank {dist.get_rank()}: equal\n", end="", flush=True)


if __name__ == "__main__":
    main()
