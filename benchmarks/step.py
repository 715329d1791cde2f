"""One training step with each compression method, as a ratio to the plain step.

    python benchmarks/step.py layers=4 hidden=256 seq=128 batch=4 dtype=float32 threads=1

Prints one JSON line an arm: name, ratio (median over interleaved rounds), seconds, machine, and
`saved_extra`: bytes kept for the backward pass beyond the plain step's, over the weights' bytes.
Arms take turns within each round, so that a drifting machine slows all of them alike.
`arms=plain,w8a8` chooses; add one by a function in `ARMS`.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from words import read


@dataclass(kw_only=True)
class Settings:
    """What the command line may say."""

    layers: int = 4
    hidden: int = 256
    seq: int = 128
    batch: int = 4
    vocab: int = 2048
    dtype: str = "float32"
    teacher_dtype: str = "float32"  # the recipes' own is bfloat16
    device: str = "cpu"
    threads: int = 1
    compile: bool = False
    rounds: int = 15
    out: str = ""
    arms: str = "plain,w8a8,w8a8_static,w8a8_tracked,w4a16,w4a8"


def model_of(settings: Settings, *, layers: int | None = None) -> nn.Module:
    """A Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=settings.vocab, hidden_size=settings.hidden,
        intermediate_size=4 * settings.hidden, num_hidden_layers=layers or settings.layers,
        num_attention_heads=max(1, settings.hidden // 64), tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(settings.device, getattr(torch, settings.dtype))


def batch_of(settings: Settings) -> dict[str, torch.Tensor]:
    """Random tokens."""
    shape = (settings.batch, settings.seq)
    tokens = torch.randint(settings.vocab, shape, device=settings.device)
    return {"input_ids": tokens, "labels": tokens.clone()}


def training_step(
    settings: Settings,
    model: nn.Module,
    teacher: object = None,
    terms: tuple[object, ...] = (),
    after_backward: Callable[[], None] = lambda: None,
) -> Callable[[], None]:
    """Forward, chunked loss, backward, AdamW: what `CompressionModule` does, without a trainer."""
    from compress.contract import Step, Want
    from compress.distill.chunked import head_losses
    from compress.distill.terms import LabelLoss
    from compress.models import trace_causal_lm

    batch = batch_of(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if settings.compile:
        model.model.compile()

    def step() -> None:
        trace = trace_causal_lm(model, batch)
        seen = Step(batch=batch, student=trace, teacher=teacher, want=Want(logits=True), number=0)
        named = {"labels": LabelLoss(weight=1.0)}
        named |= {f"term{i}": make(seen) for i, make in enumerate(terms)}
        loss, _ = head_losses(seen, named)
        loss.backward()
        after_backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain(settings: Settings) -> Callable[[], None]:
    """No compression: the measure of all others."""
    return training_step(settings, model_of(settings))


def quantised(**scheme: object) -> Callable[[Settings], Callable[[], None]]:
    """Quantisation-aware training of every linear layer but the head."""

    def arm(settings: Settings) -> Callable[[], None]:
        from compress.quantize import prepare, start

        model = model_of(settings)
        prepare(model, **scheme)
        start(model, [{"input_ids": batch_of(settings)["input_ids"][0]}], samples=1)
        return training_step(settings, model)

    return arm


def distilled(
    settings: Settings,
    model: nn.Module | None = None,
    after_backward: Callable[[], None] = lambda: None,
) -> Callable[[], None]:
    """Half the weight on a teacher twice as deep."""
    from compress.distill.build import LogitSettings, teacher_term
    from compress.teachers.local import LocalTeacher

    teacher = LocalTeacher(
        model_of(settings, layers=2 * settings.layers), dtype=settings.teacher_dtype
    )
    model = model_of(settings) if model is None else model
    return training_step(
        settings,
        model,
        teacher,
        (lambda step: teacher_term(step, LogitSettings()),),
        after_backward,
    )


def quantised_distilled(settings: Settings) -> Callable[[], None]:
    """Both together."""
    from compress.quantize import prepare

    model = model_of(settings)
    prepare(model, scheme="W8A8")
    return distilled(settings, model)


def add_masks(model: nn.Module) -> Callable[[], None]:
    """2:4 masks with a dense backward on every linear layer but the head, as SR-STE trains them.

    Returns what pulls unused weights between backward and the optimizer's step.
    """
    from compress.sparsify.dynamics import SparseLayers
    from compress.sparsify.settings import SparsitySettings
    from compress.targets import choose_layers

    settings = SparsitySettings(pattern="2:4", stop=1000, every=100)
    return SparseLayers(choose_layers(model), settings).pull_unused


def masked(settings: Settings) -> Callable[[], None]:
    """A mask in the chain of each weight; between two updates, as nearly every step is."""
    model = model_of(settings)
    return training_step(settings, model, after_backward=add_masks(model))


def masked_quantised_distilled(settings: Settings) -> Callable[[], None]:
    """Sparsity, quantisation and distillation in one step."""
    from compress.quantize import prepare

    model = model_of(settings)
    pull = add_masks(model)
    prepare(model, scheme="W8A8")
    return distilled(settings, model, pull)


ARMS: dict[str, Callable[[Settings], Callable[[], None]]] = {
    "plain": plain,
    "w8a8": quantised(scheme="W8A8"),
    "w8a8_static": quantised(scheme="W8A8", activations="static"),
    "w8a8_tracked": quantised(scheme="W8A8", scales="tracked"),
    "w4a16": quantised(scheme="W4A16", group_size=32),
    "w4a8": quantised(scheme="W4A8", group_size=32),
    "fp8_dynamic": quantised(scheme="FP8_DYNAMIC"),
    "logits": distilled,
    "w8a8_logits": quantised_distilled,
    "mask": masked,
    "mask_w8a8_logits": masked_quantised_distilled,
}


def seconds_of(step: Callable[[], None], settings: Settings) -> float:
    """Time of one step; the processor's where one thread works: neighbours cannot disturb it."""
    clock = time.process_time if settings.device == "cpu" and settings.threads == 1 else None
    begin = (clock or time.perf_counter)()
    step()
    if settings.device != "cpu":
        torch.cuda.synchronize()
    return (clock or time.perf_counter)() - begin


def saved_bytes(step: Callable[[], None]) -> int:
    """Bytes that one step makes and keeps for its backward pass; each counts once.

    Parameters and buffers are there anyway.
    """
    import gc

    kept: dict[int, int] = {}
    owned = {
        tensor.untyped_storage().data_ptr()
        for module in gc.get_objects() if issubclass(type(module), nn.Module)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    }  # fmt: skip

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() in owned:
            return tensor
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(kept.values())


def quantised_bytes(settings: Settings) -> int:
    """Bytes of the weights that the quantised arms quantise."""
    from compress.targets import choose_layers

    layers = choose_layers(model_of(settings)).values()
    return sum(m.weight.numel() * m.weight.element_size() for m in layers)


def machine(settings: Settings) -> str:
    """The processor, or the GPU."""
    if settings.device != "cpu":
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo") as lines:
        named = next((x for x in lines if x.startswith("model name")), f":{platform.processor()}")
    return f"{named.partition(':')[2].strip()}, {settings.threads} thread(s)"


def main() -> None:
    """Measure all arms in turn, print one line each."""
    settings = read(Settings, sys.argv[1:])
    torch.set_num_threads(settings.threads)
    names = list(dict.fromkeys(["plain", *settings.arms.split(",")]))
    if unknown := [name for name in names if name not in ARMS]:
        sys.exit(f"unknown arms: {', '.join(unknown)}; known: {', '.join(ARMS)}")
    steps = {name: ARMS[name](settings) for name in names}
    for step in steps.values():
        step()
        step()
    rounds = [
        {name: seconds_of(step, settings) for name, step in steps.items()}
        for _ in range(settings.rounds)
    ]
    # a compiled graph decides for itself what it keeps, and not through these hooks
    kept = {} if settings.compile else {name: saved_bytes(step) for name, step in steps.items()}
    weights, lines = quantised_bytes(settings), []
    for name in names:
        ratio = statistics.median(r[name] / r["plain"] for r in rounds)
        best = min(r[name] for r in rounds)
        line = {
            "name": name, "ratio": round(ratio, 3), "seconds": round(best, 5),
            "ratio_of_fastest": round(best / min(r["plain"] for r in rounds), 3),
            "saved_extra": round((kept[name] - kept["plain"]) / weights, 3) if kept else None,
            "machine": machine(settings), **vars(settings),
        }  # fmt: skip
        lines.append({k: v for k, v in line.items() if k not in ("arms", "out")})
        print(json.dumps(lines[-1]), flush=True)
    if settings.out:
        write(settings, lines)


GOALS = {"w8a8": 1.15, "w4a16": 1.10, "logits": 1.55, "mask": 1.05, "mask_w8a8_logits": 1.9}


def judged(lines: list[dict[str, object]]) -> str:
    """Which goals these ratios meet."""
    ratios = {str(line["name"]): float(str(line["ratio"])) for line in lines}
    words = [
        f"{name} {goal}x: {ratios[name]}, {'met' if ratios[name] <= goal else 'missed'}"
        for name, goal in GOALS.items()
        if name in ratios
    ]
    return "Goals: " + "; ".join(words) + "."


def write(settings: Settings, lines: list[dict[str, object]]) -> None:
    """The results file."""
    columns = ["name", "ratio", "ratio_of_fastest", "saved_extra"]
    one = settings.device == "cpu" and settings.threads == 1
    facts = {
        "title": "One training step under each compression method"
        + (", compiled" if settings.compile else ""),
        "question": "How much longer is a step, and how much more does it keep for backward?",
        "command": f"python benchmarks/step.py {' '.join(sys.argv[1:])}",
        "machine": machine(settings), "date": time.strftime("%Y-%m-%d"),
        "columns": columns, "rows": [[line[c] for c in columns] for line in lines],
        "notes": [
            judged(lines),
            f"{settings.layers} layers x {settings.hidden}, {settings.batch} x {settings.seq} "
            f"tokens, {settings.dtype}, teacher {settings.teacher_dtype} and twice as deep, "
            f"compile={settings.compile}; medians of {settings.rounds} "
            f"interleaved rounds of {'processor' if one else 'wall'} time.",
            "saved_extra: bytes made and kept for backward beyond the plain step's, over the "
            "bytes of the quantised weights.",
            f"Load of the machine meanwhile: {os.getloadavg()[1]:.0f} processes on "
            f"{os.cpu_count()} cores; caches shared with others make memory-bound passes slower.",
        ],
    }  # fmt: skip
    path = Path(settings.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
