"""Claims about accumulation: `accumulate` changes memory, not what is learned."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from compress.callbacks import LogitsDistillation, NumberGuard
from compress.module import CompressionModule
from tests.callbacks.distill_support import teacher
from tests.tiny import VOCAB, tiny_llama


class Uneven(torch.utils.data.Dataset):
    """Rows of 16 tokens; every other one has two labels."""

    def __init__(self, rows=24):
        draw = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, VOCAB, (rows, 16), generator=draw)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, row):
        labels = self.tokens[row].clone()
        if row % 2:
            labels[:-2] = -100
        return {"input_ids": self.tokens[row], "labels": labels}


class Seen(L.Callback):
    """Gradients as the optimizer got them; the last step's are not cleared any more."""

    def __init__(self):
        self.gradients = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        found = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}
        if found:
            self.gradients.append(found)


def fit(accumulate, *, callbacks=(), clip=None, ranks=1):
    torch.manual_seed(0)
    seen, size = Seen(), 8 // accumulate // ranks
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, accumulate_grad_batches=accumulate, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*callbacks, seen], gradient_clip_val=clip, devices=ranks,
        strategy="ddp" if ranks > 1 else "auto", use_distributed_sampler=False,
    )  # fmt: skip
    module = CompressionModule(student=tiny_llama(), teacher=teacher() if callbacks else None)
    rows = torch.arange(len(Uneven())).view(-1, ranks, size)[:, int(os.environ.get("RANK", 0))]
    data = torch.utils.data.Subset(Uneven(), rows.flatten().tolist())
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=size))
    return module, seen.gradients


def distance(ours, theirs):
    difference = sum((ours[name] - theirs[name]).square().sum() for name in theirs)
    return float((difference / sum(g.square().sum() for g in theirs.values())).sqrt())


@pytest.mark.parametrize("accumulate", [2, 8])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_each_label_of_a_step_counts_alike_however_it_is_cut_up(accumulate, clip):
    _, whole = fit(1, clip=clip)
    _, cut = fit(accumulate, clip=clip)
    assert len(whole) == len(cut) == 2
    for one, other in zip(whole, cut, strict=True):
        assert distance(other, one) < 1e-4


def test_distillation_counts_alike_too():
    _, whole = fit(1, callbacks=[LogitsDistillation()])
    _, cut = fit(4, callbacks=[LogitsDistillation()])
    assert distance(cut[0], whole[0]) < 1e-4


def test_the_guard_sees_the_loss_of_the_step_whatever_its_labels():
    guards = NumberGuard(spike_factor=4.0), NumberGuard(spike_factor=4.0)
    for accumulate, guard in zip((1, 8), guards, strict=True):
        fit(accumulate, callbacks=[guard])
    assert guards[1].losses_seen == pytest.approx(guards[0].losses_seen, rel=1e-4)


def test_two_ranks_that_accumulate_learn_what_one_learns_at_once(tmp_path):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*start, "-m", "tests.test_accumulation", str(tmp_path / "gradients.pt")]
    subprocess.run(command, check=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, whole = fit(1)
    cut = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert len(cut) == len(whole)
    for one, other in zip(whole, cut, strict=True):
        assert distance(other, one) < 1e-4


if __name__ == "__main__":
    _, seen_here = fit(2, ranks=2)
    if os.environ["RANK"] == "0":
        torch.save(seen_here, Path(sys.argv[1]))
