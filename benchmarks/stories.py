"""A small real Llama adapted to lower-cased stories: the subject of the tables on real weights.

The folder that `COMPRESS_TEST_DATA` names holds `stories260k/` (a pretrained Llama of 260,032
parameters) and `text/tinystories_lower_{train,valid}.txt`. The adapted model is kept in the cache.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LENGTH, GROUP = 128, 32
ADAPT = {"steps": 1200, "batch": 16, "learning_rate": 2e-3, "length": LENGTH, "format": 1}


def data_folder() -> Path:
    """The folder of real material; stops where it is not named."""
    named = os.environ.get("COMPRESS_TEST_DATA")
    if not named or not (Path(named) / "stories260k").is_dir():
        sys.exit("set COMPRESS_TEST_DATA to a folder that holds stories260k/ and text/")
    return Path(named)


def cache_folder() -> Path:
    """Where the adapted model and the tokens are kept."""
    root = Path(os.environ.get("COMPRESS_CACHE", "~/.cache/compress")).expanduser()
    return root / "benchmarks"


def rows(part: str) -> Tensor:
    """Token rows (R, LENGTH) of one text, `train` or `valid`, packed without padding."""
    kept = cache_folder() / f"stories_{part}_{LENGTH}.pt"
    if not kept.exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(data_folder() / "stories260k")
        text = (data_folder() / f"text/tinystories_lower_{part}.txt").read_text()
        tokens = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH), kept)
    return torch.load(kept, weights_only=True)  # type: ignore[no-any-return]


def batches(rows_RL: Tensor, *, batch: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Endless batches in an order that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows_RL), generator=generator)
        for part in order.split(batch)[: len(order) // batch]:
            yield {"input_ids": rows_RL[part], "labels": rows_RL[part]}


def padded(model: Any) -> Any:
    """The same function with MLPs 172 -> 192 wide: zeros, so that groups of 32 divide them.

    A dead neuron stays dead: with gate, up and down at zero every gradient of it is zero.
    """
    width = -(-model.config.intermediate_size // GROUP) * GROUP
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            old = getattr(layer.mlp, name)
            missing = width - model.config.intermediate_size
            pad = (0, missing, 0, 0) if name == "down_proj" else (0, 0, 0, missing)
            wide = nn.functional.pad(old.weight.detach(), pad)
            new = nn.Linear(wide.shape[1], wide.shape[0], bias=False)
            new.weight.data = wide
            setattr(layer.mlp, name, new)
    model.config.intermediate_size = width
    return model


def adapted() -> Any:
    """The pretrained model after plain training on the lower-cased stories, widths padded."""
    from transformers import AutoModelForCausalLM

    key = hashlib.sha256(json.dumps(ADAPT, sort_keys=True).encode()).hexdigest()[:8]
    folder = cache_folder() / f"stories260k_{key}"
    if not folder.exists():
        model = AutoModelForCausalLM.from_pretrained(data_folder() / "stories260k")
        train(model, rows("train"), steps=ADAPT["steps"], batch=ADAPT["batch"],
              learning_rate=ADAPT["learning_rate"], seed=0)  # fmt: skip
        beside = folder.with_name(f"{folder.name}.{os.getpid()}")
        padded(model).save_pretrained(beside)
        beside.replace(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def train(
    model: Any,
    rows_RL: Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    teacher: Any = None,
    label_weight: float = 1.0,
    terms: Sequence[Callable[[Any], Any]] = (),
    weight_decay: float = 0.0,
    warmup: int = 20,
    final_share: float = 0.0,
    after_step: Callable[[int], None] = lambda step: None,
) -> Any:
    """AdamW, warm-up and cosine, the chunked loss core: a `CompressionModule` without a trainer."""
    from compress.contract import Step, Want
    from compress.distill.chunked import head_losses
    from compress.distill.terms import LabelLoss
    from compress.models import trace_causal_lm
    from compress.module import parameter_groups

    groups = list(parameter_groups(model, learning_rate, weight_decay))
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _warm_cosine(step, warmup, steps, final_share)
    )
    source = batches(rows_RL, batch=batch, seed=seed)
    model.train()
    for number in range(steps):
        data = next(source)
        step = Step(batch=data, student=trace_causal_lm(model, data), teacher=teacher,
                    want=Want(logits=True), number=number)  # fmt: skip
        named: dict[str, Any] = {"labels": LabelLoss(weight=label_weight)}
        named |= {f"term{i}": make(step) for i, make in enumerate(terms)}
        loss, _ = head_losses(step, named)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        after_step(number + 1)
    return model


def _warm_cosine(step: int, warmup: int, total: int, floor: float) -> float:
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def loss_of(model: Any, rows_RL: Tensor, *, batch: int = 32) -> float:
    """Mean nats a token of these rows."""
    training = model.training
    model.eval()
    total = sum(
        float(model(input_ids=part, labels=part).loss) * len(part) for part in rows_RL.split(batch)
    )
    model.train(training)
    return total / len(rows_RL)
