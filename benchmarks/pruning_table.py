"""Half of the feed-forward and heads of a small real Llama cut out: loss, bytes, time.

    COMPRESS_TEST_DATA=DIR python benchmarks/pruning_table.py out=docs/results/pruning.json

Dense model and teacher are `stories.adapted()`; the pruned ones are cut before training (Minitron's
order) and trained as long as the dense one. Time is a whole forward pass and 16 tokens of greedy
decoding in transformers: median ratio to the dense model over interleaved rounds.
"""

import copy
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import stories

DEFAULTS = {"seeds": "0,1,2", "steps": "100", "batch": "4", "learning_rate": "1e-3",
            "rounds": "9", "out": ""}  # fmt: skip
CUTS: dict[str, dict[str, Any]] = {
    "half of the feed-forward": {"ffn_density": 0.5},
    "half of the feed-forward and of the heads": {"ffn_density": 0.5, "heads_density": 0.5},
}
WIDE = "12 heads of 32, random weights: half of the feed-forward, a third of the heads"
COLUMNS = ["model", "loss, untrained", "loss, labels", "loss, distilled", "kept, distilled",
           "bytes", "forward, ratio", "decoding, ratio"]  # fmt: skip


def pruned(dense: Any, sizes: dict[str, Any]) -> Any:
    """The dense model cut at once, by activation magnitudes on training rows."""
    from compress.prune.build import prune_and_shrink

    source = stories.batches(stories.rows("train"), batch=16, seed=0)
    return prune_and_shrink(dense, [next(source) for _ in range(4)], **sizes)


def trained(model: Any, words: dict[str, str], seed: int, teacher: Any = None) -> float:
    """Held-out loss of a copy after training by labels, or by a teacher alone."""
    from compress.distill.build import LogitSettings, teacher_term
    from compress.teachers.local import LocalTeacher

    told = LogitSettings(teacher_weight=1.0)
    made = stories.train(
        copy.deepcopy(model), stories.rows("train"), steps=int(words["steps"]),
        batch=int(words["batch"]), learning_rate=float(words["learning_rate"]), seed=seed,
        teacher=None if teacher is None else LocalTeacher(copy.deepcopy(teacher)),
        label_weight=1.0 if teacher is None else 0.0,
        terms=() if teacher is None else (lambda step: teacher_term(step, told),),
    )  # fmt: skip
    return stories.loss_of(made, stories.rows("valid")[:256])


def bytes_of(model: Any) -> int:
    """Of the written weight file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(p.stat().st_size for p in Path(folder).glob("*.safetensors"))


@torch.no_grad()
def times(models: list[Any], rounds: int) -> list[list[float]]:
    """Forward and decoding ratios of each model to the first."""
    vocab = models[0].config.vocab_size
    tokens = torch.randint(3, vocab, (4, 128), generator=torch.Generator().manual_seed(0))
    works: list[Callable[[Any], Any]] = [
        lambda m: m(input_ids=tokens),
        lambda m: m.generate(tokens[:1, :16], max_new_tokens=16, min_new_tokens=16,
                             do_sample=False, pad_token_id=0),
    ]  # fmt: skip
    found: list[list[float]] = [[] for _ in models]
    for work in works:
        seconds = [[_cpu_seconds(work, m.eval()) for m in models] for _ in range(rounds + 1)][1:]
        for index in range(len(models)):
            found[index].append(round(statistics.median(s[index] / s[0] for s in seconds), 3))
    return found


def _cpu_seconds(work: Callable[[Any], Any], model: Any) -> float:
    # CPU time of one thread: on a shared machine the wall measures the neighbours
    begin = time.process_time()
    work(model)
    return time.process_time() - begin


def wide_pair() -> list[Any]:
    """A Llama whose heads divide by three, and itself without half the feed-forward and a third."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=2048, hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=12, num_key_value_heads=6, head_dim=32, tie_word_embeddings=False,
    ))  # fmt: skip
    from compress.prune.build import prune_and_shrink

    tokens = torch.randint(3, 2048, (4, 64))
    return [model, prune_and_shrink(model, [{"input_ids": tokens}], ffn_density=0.5,
                                    kv_density=2 / 3)]  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    words = {**DEFAULTS, **dict(word.split("=", 1) for word in sys.argv[1:])}
    if unknown := words.keys() - DEFAULTS.keys():
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(DEFAULTS)}")
    seeds, dense = [int(s) for s in words["seeds"].split(",")], stories.adapted()
    small = {name: pruned(dense, sizes) for name, sizes in CUTS.items()}
    ratios = times([dense, *small.values()], int(words["rounds"]))
    base = [trained(dense, words, seed) for seed in seeds]
    rows: list[list[Any]] = [["stories260k, trained alike", "", mean(base), "", "",
                              bytes_of(dense), *ratios[0]]]  # fmt: skip
    for (name, model), ratio in zip(small.items(), ratios[1:], strict=True):
        labels = [trained(model, words, seed) for seed in seeds]
        taught = [trained(model, words, seed, teacher=dense) for seed in seeds]
        kept = statistics.fmean(math.exp(d - x) for d, x in zip(base, taught, strict=True))
        untrained = stories.loss_of(model, stories.rows("valid")[:256])
        rows.append([name, round(untrained, 4), mean(labels), mean(taught), round(kept, 4),
                     bytes_of(model), *ratio])  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    wide = wide_pair()
    for name, model, ratio in zip(
        ("12 heads of 32, random weights", WIDE), wide, times(wide, int(words["rounds"])),
        strict=True,
    ):  # fmt: skip
        rows.append([name, "", "", "", "", bytes_of(model), *ratio])
        print(json.dumps(rows[-1]), flush=True)
    if words["out"]:
        write(Path(words["out"]), rows, words)


def mean(losses: list[float]) -> str:
    """Mean and standard deviation; no deviation of one."""
    if len(losses) == 1:
        return f"{losses[0]:.4f}"
    return f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f}"


def write(path: Path, rows: list[list[Any]], words: dict[str, str]) -> None:
    """The results file."""
    from sparsity_table import processor

    facts = {
        "title": "Structured pruning of a real Llama",
        "question": "What do half of the feed-forward and of the heads cost, what do they give?",
        "command": "COMPRESS_TEST_DATA=... python benchmarks/pruning_table.py "
        + " ".join(sys.argv[1:]),
        "machine": f"{processor()}, {torch.get_num_threads()} thread",
        "date": time.strftime("%Y-%m-%d"),
        "columns": COLUMNS,
        "rows": rows,
        "notes": [
            f"{words['steps']} steps of {words['batch']} x {stories.LENGTH} tokens for every "
            f"trained model, the dense one too; seeds {words['seeds']} of data order. Times are "
            "CPU seconds of one thread in transformers, as ratios to the dense model, batch 4 x "
            "128 tokens (forward) and 16 new tokens at batch 1 (decoding). Bytes are float32.",
            "stories260k has 8 heads of 8 over a width of 64: a third of them cannot go, since "
            "a Llama's configuration demands that its heads divide its width; half of them go. "
            "A third is timed on a wider model of random weights. vLLM was not timed here.",
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
