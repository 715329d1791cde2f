"""Peak memory and CPU time of the distillation loss, chunked against naive.

    python benchmarks/distill_loss.py
    python benchmarks/distill_loss.py tokens=2048 hidden=512 vocab=32000 repeats=3 chunks=3,2,4

One JSON line an arm. `ratio` is CPU time over the arm `naive`'s, `memory_ratio` naive's peak over
the arm's. Each arm runs in a fresh process: peak is the resident set's high-water mark of one step
above what the inputs take, time the process's CPU seconds of a step (median).
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

DEFAULTS = {
    "tokens": "2048", "hidden": "512", "vocab": "32000", "repeats": "3", "chunks": "3", "out": "",
}  # fmt: skip


def main(arguments: list[str]) -> None:
    """Measure every arm, or with `arm=` that one in this process."""
    settings = {**DEFAULTS, **dict(argument.split("=", 1) for argument in arguments)}
    unknown = settings.keys() - DEFAULTS.keys() - {"arm"}
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; use {', '.join(DEFAULTS)}")
    if "arm" in settings:
        print(json.dumps(measure(settings)))
        return
    arms = ["naive", *(f"chunked_{c}M" for c in settings["chunks"].split(","))]
    arms += [f"{arm}_frozen_head" for arm in (arms[0], arms[1])]
    naive, measured = None, []
    for arm in arms:
        found = in_fresh_process(arm, settings)
        naive = naive or found
        found["ratio"] = round(found["cpu_s"] / naive["cpu_s"], 3)
        found["memory_ratio"] = round(naive["peak_mb"] / found["peak_mb"], 2)
        print(json.dumps({"name": arm, **found, "machine": machine()}), flush=True)
        measured.append([arm, found["ratio"], found["memory_ratio"], found["peak_mb"]])
    if settings["out"]:
        write(settings, measured, " ".join(arguments))


def write(settings: dict[str, str], rows: list[list[object]], words: str) -> None:
    """The results file."""
    best = next(row for row in rows if str(row[0]).startswith("chunked"))
    facts = {
        "title": "The distillation loss in chunks",
        "question": "What does never holding all logits save, and what does it cost?",
        "command": f"python benchmarks/distill_loss.py {words}",
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "columns": ["loss", "CPU time over naive", "naive peak over its peak", "peak (MB)"],
        "rows": rows,
        "notes": [
            f"{settings['tokens']} tokens x {settings['hidden']} x {settings['vocab']}, fp32: "
            "labels and forward KL to a teacher of the same width, forward and backward. Peak: "
            "resident memory of a step above its inputs, each arm in a fresh process. "
            "chunked_NM holds N * 2^20 logits at once (3 by default in the project); frozen_head: "
            "the head does not learn.",
            f"Goal, peak at most 1/9 of naive: 1/{best[2]}, {'met' if best[2] >= 9 else 'missed'}.",
            f"Goal, CPU time at most 0.9 of naive: {best[1]}, "
            f"{'met' if best[1] <= 0.9 else 'missed'}.",
        ],
    }
    Path(settings["out"]).parent.mkdir(parents=True, exist_ok=True)
    Path(settings["out"]).write_text(json.dumps(facts, indent=1) + "\n")


def in_fresh_process(arm: str, settings: dict[str, str]) -> dict[str, float]:
    """One arm, in a process of its own."""
    words = [f"{key}={value}" for key, value in settings.items() if key != "out"]
    command = [sys.executable, __file__, f"arm={arm}", *words]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(settings: dict[str, str]) -> dict[str, float]:
    """Peak of the first step, CPU seconds of the next ones."""
    import torch

    sizes = [int(settings[key]) for key in ("tokens", "hidden", "vocab")]
    inputs = make_inputs(torch, *sizes, frozen=settings["arm"].endswith("frozen_head"))
    loss = naive_loss if settings["arm"].startswith("naive") else chunked_loss(settings["arm"])
    warm = make_inputs(torch, 8, 64, 128, frozen=False)
    loss(**warm).backward()  # libraries and thread pools are no part of a step
    base = reset_peak()
    loss(**inputs).backward()
    peak = peak_mb() - base
    return {"peak_mb": round(peak, 1), "cpu_s": round(median_step(loss, inputs, settings), 3)}


def median_step(loss, inputs, settings) -> float:
    """CPU seconds of a forward and backward pass."""
    seconds = []
    for _ in range(int(settings["repeats"])):
        for tensor in inputs.values():
            tensor.grad = None
        start = time.process_time()
        loss(**inputs).backward()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def make_inputs(torch, tokens: int, hidden: int, vocab: int, *, frozen: bool):
    """Hidden states, heads and labels; logits of size about 1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * hidden**-0.5

    return {
        "hidden_NH": (normal(tokens, hidden) * hidden**0.5).requires_grad_(),
        "head_VH": normal(vocab, hidden).requires_grad_(not frozen),
        "teacher_NH": normal(tokens, hidden) * hidden**0.5,
        "teacher_head_VH": normal(vocab, hidden),
        "labels_N": torch.randint(0, vocab, (tokens,), generator=generator),
    }


def naive_loss(*, hidden_NH, head_VH, teacher_NH, teacher_head_VH, labels_N):
    """Both models' logits for all tokens, as the formula is usually written."""
    import torch
    from torch.nn.functional import cross_entropy, kl_div, log_softmax

    logits_NV = hidden_NH @ head_VH.T
    with torch.no_grad():
        teacher_NV = teacher_NH @ teacher_head_VH.T
    divergence = kl_div(
        log_softmax(logits_NV, -1), log_softmax(teacher_NV, -1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip
    return 0.5 * cross_entropy(logits_NV, labels_N) + 0.5 * divergence


def chunked_loss(arm: str):
    """The project's own loss, at a chunk of n * 2^20 logits."""
    from compress.contract import DenseSignal, Head, Step, Trace, Want
    from compress.distill.build import LogitSettings, teacher_term
    from compress.distill.chunked import head_losses
    from compress.distill.terms import LabelLoss

    elements = int(float(arm.split("_")[1].rstrip("M")) * 2**20)

    def loss(*, hidden_NH, head_VH, teacher_NH, teacher_head_VH, labels_N):
        trace = Trace(hidden_BLH=hidden_NH[:, None], head=Head(weight_VH=head_VH))
        signal = DenseSignal(hidden_SLH=teacher_NH[:, None], head=Head(weight_VH=teacher_head_VH))
        step = Step(
            batch={"labels": labels_N}, student=trace, teacher=None, want=Want(), number=0
        )  # fmt: skip
        term = teacher_term(step, LogitSettings(teacher_weight=0.5), signal=signal)
        terms = {"labels": LabelLoss(weight=0.5), "logits": term}
        return head_losses(step, terms, chunk_elements=elements)[0]

    return loss


def reset_peak() -> float:
    """Forget the high-water mark; the resident megabytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    """The resident set's high-water mark."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> str:
    """What this ran on."""
    info = Path("/proc/cpuinfo")
    names = [r.split(":")[1].strip() for r in info.read_text().splitlines() if "model name" in r]
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{names[0]}, {os.cpu_count()} cores, OMP_NUM_THREADS={threads}, {platform.system()}"


if __name__ == "__main__":
    main(sys.argv[1:])
