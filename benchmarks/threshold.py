"""One mask update of a 4096 x 4096 weight: two histograms against `torch.kthvalue` and a sort.

    python benchmarks/threshold.py
    python benchmarks/threshold.py size=2048 density=0.2 rounds=5 threads=1 dtype=bfloat16

Prints one JSON line an arm; `ratio` is the median over interleaved rounds of its time over
`kthvalue`'s. Every arm makes the whole boolean mask; `kept` counts it.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

DEFAULTS = {"size": "4096", "density": "0.5", "rounds": "5", "threads": "1", "dtype": "float32"}


def kthvalue(weight: Tensor, kept: int) -> Tensor:
    """As it is usually written, with k counted rightly; ties are all kept."""
    magnitudes = weight.abs()
    threshold = magnitudes.flatten().kthvalue(weight.numel() - kept + 1).values
    return magnitudes >= threshold


def topk(weight: Tensor, kept: int) -> Tensor:
    """`torch.topk` and a scatter."""
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().topk(kept, sorted=False).indices] = True
    return mask.view(weight.shape)


def histogram(weight: Tensor, kept: int) -> Tensor:
    """Ours: exact count, ties by index, additive over layers and ranks."""
    from compress.sparsify.thresholds import keep_largest

    return keep_largest([weight], kept=kept)[0]


ARMS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "kthvalue": kthvalue, "topk": topk, "histogram": histogram,
}  # fmt: skip


def main() -> None:
    """Measure all arms in turn, print one line each."""
    words = {**DEFAULTS, **dict(word.split("=", 1) for word in sys.argv[1:])}
    if unknown := words.keys() - DEFAULTS.keys():
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(DEFAULTS)}")
    torch.set_num_threads(int(words["threads"]))
    size, density = int(words["size"]), float(words["density"])
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator).to(getattr(torch, words["dtype"]))
    kept = round(density * weight.numel())
    rounds, counts = [], {}
    for number in range(int(words["rounds"]) + 1):
        seconds = {}
        for name, arm in ARMS.items():
            # CPU time: on a shared machine the wall measures the neighbours
            begin = time.process_time()
            mask = arm(weight, kept)
            seconds[name] = time.process_time() - begin
            counts[name] = int(mask.sum())
        rounds += [seconds] if number else []  # the first round warms up
    for name in ARMS:
        ratio = statistics.median(r[name] / r["kthvalue"] for r in rounds)
        cpu_s = statistics.median(r[name] for r in rounds)
        line = {"name": name, "ratio": round(ratio, 3), "cpu_s": round(cpu_s, 4),
                "kept": counts[name], "asked": kept, "machine": machine(), **words}  # fmt: skip
        print(json.dumps(line), flush=True)


def machine() -> str:
    """The processor."""
    with open("/proc/cpuinfo") as lines:
        named = next((x for x in lines if x.startswith("model name")), f":{platform.processor()}")
    return f"{named.partition(':')[2].strip()}, {torch.get_num_threads()} thread(s)"


if __name__ == "__main__":
    main()
