"""One rank of two under faults that only one of them meets (started by torchrun).

python -m torch.distributed.run --standalone --nproc-per-node=2 -m tests.faults.two_ranks_child
"""

import hashlib
import sys

import lightning as L
import torch

from compress.callbacks import LogitsDistillation, NumberGuard, QuantizationAwareTraining
from compress.data.loader import ResumableLoader
from compress.guard import NumbersFailed
from compress.module import CompressionModule
from compress.teachers.local import LocalTeacher
from tests.tiny import TinyData, tiny_llama


class Poison(L.Callback):
    """Makes the loss of rank 1 NaN at step 2."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        bad = trainer.global_rank == 1 and trainer.global_step == 2
        pl_module.label_weight = float("nan") if bad else 1.0


def fit(guard, *also, loader):
    torch.manual_seed(0)
    teacher = LocalTeacher(tiny_llama(layers=3, seed=1))
    module = CompressionModule(student=tiny_llama(), teacher=teacher, warmup_steps=0)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=6, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=not isinstance(loader, ResumableLoader),
        callbacks=[*also, QuantizationAwareTraining(), LogitsDistillation(), guard],
    )  # fmt: skip
    trainer.fit(module, loader)
    weights = b"".join(p.detach().numpy().tobytes() for p in module.parameters())
    return trainer.global_rank, hashlib.sha256(weights).hexdigest()[:12]


def say(case, rank, faults, weights):
    # in one write: two ranks share the pipe
    sys.stdout.write(f"\n{case} rank {rank} faults {faults} weights {weights}\n")
    sys.stdout.flush()


def main() -> None:
    torch.set_num_threads(1)
    whole = ResumableLoader(TinyData(), batch_size=4)
    for policy in ("skip", "rollback"):
        guard = NumberGuard(policy=policy)
        rank, digest = fit(guard, Poison(), loader=whole)
        say(policy, rank, len(guard.faults), digest)
    # 6 rows, 3 a rank, in batches of 2: the last of each epoch has one row
    uneven = torch.utils.data.DataLoader(TinyData(rows=6), batch_size=2, shuffle=True)
    guard = NumberGuard(policy="stop")
    rank, digest = fit(guard, loader=uneven)
    say("one-row", rank, len(guard.faults), digest)
    try:
        fit(NumberGuard(policy="stop"), Poison(), loader=whole)
    except NumbersFailed as error:
        say("stop", rank, 1, "step 2" in str(error))


if __name__ == "__main__":
    main()
