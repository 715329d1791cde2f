"""One of two ranks of a sparse, pruned, quantised and distilled run (started by torchrun).

torchrun --nproc-per-node=2 -m tests.callbacks.sparse_rank FOLDER
"""

import sys
from hashlib import sha256

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

from compress.data.loader import ResumableLoader
from compress.module import CompressionModule
from compress.teachers.local import LocalTeacher
from tests.callbacks.test_dynamic_sparsity import StopAt
from tests.callbacks.test_structured_pruning import everything, finalised
from tests.tiny import TinyData, tiny_llama


def fit(callbacks, *, until=6, ckpt=None, folder=None):
    L.seed_everything(dist.get_rank() if dist.is_initialized() else 0, verbose=False)
    module = CompressionModule(
        student=tiny_llama(layers=3), teacher=LocalTeacher(tiny_llama(layers=3, seed=1)),
        warmup_steps=1,
    )  # fmt: skip
    trainer = L.Trainer(
        max_steps=6, accumulate_grad_batches=3, gradient_clip_val=0.5, precision="bf16-mixed",
        callbacks=[*callbacks, StopAt(until)], accelerator="cpu", devices=2, logger=False,
        strategy=DDPStrategy(process_group_backend="gloo", find_unused_parameters=False),
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, ResumableLoader(TinyData(rows=160), batch_size=4), ckpt_path=ckpt)
    if folder:
        trainer.save_checkpoint(f"{folder}/cut.ckpt")
    return module


def digest(model) -> str:
    return sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def main() -> None:
    folder = sys.argv[1]
    torch.set_num_threads(1)
    whole = everything()
    straight = digest(finalised(whole, fit(whole)))
    fit(everything(), until=3, folder=folder)
    again = everything()
    resumed = digest(finalised(again, fit(again, ckpt=f"{folder}/cut.ckpt")))
    ranks: list = [None, None]
    dist.all_gather_object(ranks, (straight, resumed, again[1].history == whole[1].history))
    assert ranks[0] == ranks[1], "ranks differ"
    assert straight == resumed, "the resumed run differs"
    assert ranks[0][2], "the masks' history differs"
    print(f"rank {dist.get_rank()}: equal", flush=True)


if __name__ == "__main__":
    main()
