"""One step of distillation against the same step written by hand with plain autograd.

    python benchmarks/distill_step.py layers=4 hidden=256 seq=128 batch=4 vocab=2048 rounds=9

One JSON line an arm; `ratio` is CPU time over the arm `floor`'s, the median over interleaved
rounds. The floor: both forward passes, logits of all tokens, cross-entropy and KL by torch's own
functions, backward, AdamW.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

sys.path.insert(0, str(Path(__file__).parent))
import distill_runs as runs

DEFAULTS = {"layers": "4", "hidden": "256", "seq": "128", "batch": "4", "vocab": "2048",
            "rounds": "9", "out": ""}  # fmt: skip
GOALS = {"logits": 1.02, "logits + features": 1.08}


def model_of(settings: dict[str, str], layers: int) -> Any:
    """A Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    hidden = int(settings["hidden"])
    config = LlamaConfig(
        vocab_size=int(settings["vocab"]), hidden_size=hidden, intermediate_size=4 * hidden,
        num_hidden_layers=layers, num_attention_heads=max(1, hidden // 64),
    )  # fmt: skip
    return LlamaForCausalLM(config)


def floor(student: Any, teacher: Any, batch: dict[str, torch.Tensor]) -> Callable[[], Any]:
    """The hand-written loss."""

    def loss() -> Any:
        with torch.no_grad():
            theirs = teacher(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
        ours = student(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1].flatten(0, 1)
        labels = batch["labels"][:, 1:].flatten()
        divergence = kl_div(
            log_softmax(ours, -1), log_softmax(theirs.flatten(0, 1), -1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        return 0.5 * cross_entropy(ours, labels) + 0.5 * divergence

    return loss


def ours(
    student: Any, teacher: Any, batch: dict[str, torch.Tensor], callbacks: list[Any]
) -> Callable[[], Any]:
    """The project's loss under its callbacks."""
    from compress.contract import Step, union_of_wants
    from compress.joint_loss import joint_loss
    from compress.models import trace_causal_lm
    from compress.teachers.local import LocalTeacher

    both = runs.Both(student, LocalTeacher(teacher))
    for callback in callbacks:
        callback.setup(None, both, "fit")

    def loss() -> Any:
        step = Step(batch=batch, student=trace_causal_lm(student, batch), teacher=both.teacher,
                    want=union_of_wants(callbacks), number=0)  # fmt: skip
        return joint_loss(step, callbacks, label_weight=0.5)[0]

    return loss


def arms(settings: dict[str, str]) -> dict[str, Callable[[], None]]:
    """A whole step of each arm."""
    from compress.callbacks import FeatureDistillation, LogitsDistillation

    layers = int(settings["layers"])
    student, teacher = model_of(settings, layers), model_of(settings, 2 * layers).eval()
    shape = (int(settings["batch"]), int(settings["seq"]))
    tokens = torch.randint(int(settings["vocab"]), shape)
    batch = {"input_ids": tokens, "labels": tokens}
    told: dict[str, list[Any]] = {
        "logits": [LogitsDistillation()],
        "logits + features": [LogitsDistillation(), FeatureDistillation(loss="mse")],
    }

    def whole(make: Callable[[Any, Any], Callable[[], Any]]) -> Callable[[], None]:
        mine = copy.deepcopy(student)
        loss = make(mine, copy.deepcopy(teacher))
        optimizer = torch.optim.AdamW(mine.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    made = {"floor": whole(lambda s, t: floor(s, t, batch))}
    for name, callbacks in told.items():
        made[name] = whole(lambda s, t, c=callbacks: ours(s, t, batch, c))  # type: ignore[misc]
    return made


def main() -> None:
    """Measure all arms in turn, print one line each."""
    torch.set_num_threads(1)
    settings = runs.settings_of(sys.argv[1:], DEFAULTS)
    steps = arms(settings)
    for step in steps.values():
        step()
    rounds = []
    for _ in range(int(settings["rounds"])):
        taken = {}
        for name, step in steps.items():
            begin = time.process_time()
            step()
            taken[name] = time.process_time() - begin
        rounds.append(taken)
    ratios = {n: statistics.median(r[n] / r["floor"] for r in rounds) for n in steps}
    for name, ratio in ratios.items():
        print(json.dumps({"name": name, "ratio": round(ratio, 3), **settings}))
    if settings["out"]:
        verdicts = [
            f"{name}: {ratios[name]:.3f}x, goal {goal}x, "
            f"{'met' if ratios[name] <= goal else 'missed'}."
            for name, goal in GOALS.items()
        ]
        runs.write(
            settings["out"], title="A step of distillation against the same step by hand",
            question="What do the callbacks cost beside plain autograd?",
            command="python benchmarks/distill_step.py " + " ".join(sys.argv[1:]),
            columns=["step", "CPU time over the hand-written step's"],
            rows=[[name, round(ratio, 3)] for name, ratio in ratios.items()],
            notes=[f"Median over {settings['rounds']} interleaved rounds of "
                   f"{settings['batch']} x {settings['seq']} tokens, width {settings['hidden']}, "
                   f"{settings['layers']} layers and a teacher of twice as many, vocabulary "
                   f"{settings['vocab']}.", *verdicts],
        )  # fmt: skip


if __name__ == "__main__":
    main()
