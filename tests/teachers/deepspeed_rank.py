"""One rank of the ZeRO-3 test: a DDP student beside a sharded teacher (started by torchrun).

torchrun --nproc-per-node=2 -m tests.teachers.deepspeed_rank CHECKPOINT
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from compress.contract import Want
from compress.scripts.lib.launch import part_ranks
from compress.teachers.deepspeed import DeepSpeedTeacher
from compress.teachers.local import LocalTeacher, load_hf_teacher
from tests.tiny import tiny_batch, tiny_llama

WANT = Want(logits=True, features=("model.layers.1",))


def check_answer(sharded, whole, batch):
    found, expected = sharded.signal(batch, WANT), whole.signal(batch, WANT)
    assert torch.equal(found.head(found.hidden_SLH), expected.head(expected.hidden_SLH))
    name = WANT.features[0]
    assert torch.equal(found.features[name], expected.features[name])
    return found


def main() -> None:
    path = sys.argv[1]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    linear = torch.nn.functional.linear
    student = DistributedDataParallel(tiny_llama(layers=1, seed=3))
    teacher = DeepSpeedTeacher(path, dtype="float32", persist_elements=0, prefetch_elements=0)
    whole = LocalTeacher(load_hf_teacher(path))
    for step in range(3):  # ranks have other rows, and unequally many
        batch = tiny_batch(rows=2 + rank, seed=10 * step + rank)
        signal = check_answer(teacher, whole, batch)
        logits = student(input_ids=batch["input_ids"]).logits
        (logits - signal.head(signal.hidden_SLH)).square().mean().backward()
    model = teacher.build().model
    lowered = DeepSpeedTeacher(path, dtype="bfloat16").build().model
    for ours, theirs in zip(lowered.buffers(), whole.model.buffers(), strict=True):
        assert torch.equal(ours, theirs), "rotary frequencies were rounded"
    held = sum(p.ds_tensor.numel() for p in model.parameters())
    total = sum(p.ds_numel for p in model.parameters())
    assert held <= total / 2 + 64, (held, total)
    assert all(p.numel() == 0 for p in model.parameters()), "a layer stayed whole"
    assert torch.nn.functional.linear is linear, "torch's own linear was replaced"
    assert not hasattr(next(student.parameters()), "ds_id"), "the student was sharded"
    print(f"rank {rank}: equal", flush=True)
    part_ranks()  # as a run does: a rank that leaves early takes the other's threads down


if __name__ == "__main__":
    main()
