"""One rank of two: the same trainings under `ddp` and under `fsdp2` (started by torchrun).

python -m torch.distributed.run --standalone --nproc-per-node=2 -m tests.sharded_child FOLDER CASE
"""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import torch
from omegaconf import OmegaConf

from compress import callbacks as known
from compress.scripts.lib import trainer
from compress.scripts.lib.config import recipes_folder
from compress.sharding import local, sharding_of
from compress.teachers.local import LocalTeacher
from tests.faults.two_ranks_child import Poison
from tests.scripts.small_run import Fails
from tests.tiny import TinyData, tiny_llama

QAT, LOGITS = known.QuantizationAwareTraining, known.LogitsDistillation
CASES = {
    "w8a8": lambda: [QAT(), LOGITS()],
    "w4a16-later": lambda: [
        QAT(scheme="W4A16:32", init="gptq", start_step=3, freeze_step=6),
        known.FeatureDistillation(),
    ],
    "static-routed": lambda: [QAT(activations="static"), known.RoutedDistillation()],
    "on-policy": lambda: [QAT(scheme="FP8"), known.OnPolicyDistillation(new_tokens=8)],
    "rigl": lambda: [known.DynamicSparsity(stop=6, every=2, growth="gradient"), QAT()],
    "pruned-sparse": lambda: [
        known.StructuredPruning(stop=4, every=2, importance="taylor"),
        known.DynamicSparsity(stop=6, every=2, budget="global", backward_density=0.7), QAT(),
    ],
    "smooth": lambda: [QAT(init="smoothquant"), known.StructuredPruning(importance="l1")],
    "adapters": lambda: [QAT(scheme="W4A16:32", adapter_rank=4), LOGITS()],
    "nvfp4": lambda: [QAT(scheme="NVFP4", embeddings="W8A16:32"), LOGITS(top_k=8)],
    "resumed": lambda: [
        known.DynamicSparsity(stop=6, every=2, growth="gradient"), QAT(),
        known.FeatureDistillation(),
    ],
    "guarded": lambda: [Poison(), QAT(), LOGITS(), known.NumberGuard(policy="skip")],
}  # fmt: skip
CHANGES = {
    "w8a8": {"accumulate": 2, "clip_norm": 1},
    "w4a16-later": {"clip_norm": 0.05},
    "rigl": {"checkpointing": True},
}
TIED = ("w8a8", "rigl")


class Shares(L.Callback):
    """Counts what this rank holds after the second step."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == 2:
            parameters = list(pl_module.parameters())
            self.whole = sum(p.numel() for p in parameters)
            self.weights = sum(local(p).numel() for p in parameters)
            states = trainer.optimizers[0].state.values()
            moments = [v for state in states for v in state.values() if v.dim()]
            self.moments = sum(local(m).numel() for m in moments)


def fit(strategy, case, *also, checkpoints=None, ckpt=None):
    """One training; answers the module, or None where a callback ended it."""
    settings = OmegaConf.load(recipes_folder() / "trainer" / "ddp.yaml")
    settings.update({
        "strategy": strategy, "max_steps": 8, "batch_size": 4, "validate_every": 4,
        "precision": "32-true", "checkpoint_every": 2, **CHANGES.get(case, {}),
    })  # fmt: skip
    teacher = LocalTeacher(tiny_llama(layers=3, hidden=64))
    torch.manual_seed(0)
    try:
        return trainer.train(
            student=tiny_llama(seed=1, tie_word_embeddings=case in TIED), teacher=teacher,
            data=SimpleNamespace(train=TinyData(rows=96), validation=TinyData(rows=16, seed=5)),
            trainer=settings, training=OmegaConf.load(recipes_folder() / "training/default.yaml"),
            loggers=[], seed=0, verbose=False, callbacks=[*CASES[case](), *also],
            checkpoints=checkpoints, ckpt_path=ckpt,
        )  # fmt: skip
    except RuntimeError as error:
        assert "went down" in str(error), error
        return None


def gap(one, other):
    """Largest difference between two modules' states, which must have the same names."""
    assert list(one) == list(other), sorted(set(one) ^ set(other))
    return max(float((one[k].double() - other[k].double()).abs().max()) for k in one)


def compare(case):
    """What the two trainings of a case end with."""
    seen = Shares()
    plain, sharded = fit("ddp", case), fit("fsdp2", case, seen)
    student = sharded.student
    return {
        "gap": gap(plain.state_dict(), sharded.state_dict()), "weights": seen.weights / seen.whole,
        "moments": seen.moments / (2 * seen.whole),
        "ordinary": sharding_of(student) is None and type(student) is type(plain.student)
        and gap(copy.deepcopy(student).state_dict(), student.state_dict()) == 0,
    }  # fmt: skip


def resume(folder):
    """Runs that ended after step 5, gone on from their checkpoint of step 4."""
    found, case = {}, "resumed"
    for strategy in ("fsdp2", "ddp"):
        assert fit(strategy, case, Fails(after=5), checkpoints=folder / strategy) is None
    torch.distributed.barrier()
    kept = {s: folder / s / "last.ckpt" for s in ("fsdp2", "ddp")}
    whole = {s: fit(s, case).state_dict() for s in kept}
    found["exact"] = gap(whole["fsdp2"], fit("fsdp2", case, ckpt=kept["fsdp2"]).state_dict())
    found["onto ddp"] = gap(whole["ddp"], fit("ddp", case, ckpt=kept["fsdp2"]).state_dict())
    found["from ddp"] = gap(whole["fsdp2"], fit("fsdp2", case, ckpt=kept["ddp"]).state_dict())
    states = [torch.load(path, weights_only=True) for path in kept.values()]
    found["step"] = states[0]["global_step"]
    found["checkpoints"] = gap(*(s["state_dict"] for s in states))
    moments = [s["optimizer_states"][0]["state"] for s in states]
    found["moments"] = max(gap(moments[0][n], moments[1][n]) for n in moments[1])
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder, *cases = sys.argv[1:]
    for case in cases:
        found = resume(Path(folder)) if case == "resume" else compare(case)
        # in one write: two ranks share the pipe
        line = json.dumps({"case": case, "rank": torch.distributed.get_rank(), **found})
        sys.stdout.write(f"\nFOUND {line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
