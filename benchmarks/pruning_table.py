"""Half of the feed-forward and some heads of real Llamas cut out: loss, bytes, time.

    COMPRESS_TEST_DATA=DIR python benchmarks/pruning_table.py out=docs/results/pruning.json

Two subjects: `stories.adapted()`, and a Llama whose heads divide by three, trained from nothing on
the same stories and kept in the cache. The dense model is the teacher; the pruned ones are cut
before training (Minitron's order) and trained as long as the dense one. Time is a whole forward
pass and 16 tokens of greedy decoding in transformers (median CPU time ratio over interleaved
rounds), and 32 new tokens in vLLM where `python=` names an environment that has it. Losses are
kept in the cache, so that a stopped run goes on; `times=false` fills it and measures no time.
"""

import copy
import hashlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import stories
from words import read

SIX = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
       "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32}  # fmt: skip
WIDE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
        "num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 32}  # fmt: skip
SCRATCH = {"steps": 1500, "batch": 16, "learning_rate": 3e-3}
A_THIRD = {"half of the feed-forward, a third of the heads": {"ffn_density": 0.5,
                                                              "kv_density": 2 / 3}}  # fmt: skip
CUTS: dict[str, dict[str, dict[str, Any]]] = {
    "stories260k": {
        "half of the feed-forward": {"ffn_density": 0.5},
        "half of the feed-forward and of the heads": {"ffn_density": 0.5, "heads_density": 0.5},
    },
    "4 x 192, 6 heads": A_THIRD,
    "6 x 384, 12 heads, random weights": A_THIRD,
}
COLUMNS = ["model", "cut", "loss, untrained", "loss, labels", "loss, distilled",
           "kept, distilled", "bytes", "forward, ratio", "decoding, ratio",
           "vLLM latency, ratio"]  # fmt: skip


@dataclass(kw_only=True)
class Settings:
    """What the command line may say; `python` names an interpreter that has vLLM."""

    seeds: str = "0,1,2"
    steps: int = 400
    batch: int = 8
    learning_rate: float = 2e-3
    rounds: int = 9
    times: bool = True
    python: str = ""
    out: str = ""


def six_heads() -> Any:
    """A Llama of 6 heads of 32 over a width of 192, trained on the stories; kept in the cache."""
    from transformers import AutoModelForCausalLM

    key = hashlib.sha256(json.dumps([SIX, SCRATCH], sort_keys=True).encode()).hexdigest()[:8]
    folder = stories.cache_folder() / f"stories_six_heads_{key}"
    if not folder.exists():
        model = stories.train(random_llama(SIX), stories.rows("train"), seed=0, **SCRATCH)
        beside = folder.with_name(f"{folder.name}.{os.getpid()}")
        model.save_pretrained(beside)
        beside.replace(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def random_llama(sizes: dict[str, int]) -> Any:
    """Random weights, the vocabulary of the stories."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=512, tie_word_embeddings=False, **sizes))


SUBJECTS: dict[str, Callable[[], Any]] = {
    "stories260k": stories.adapted,
    "4 x 192, 6 heads": six_heads,
    "6 x 384, 12 heads, random weights": lambda: random_llama(WIDE),
}


def pruned(dense: Any, sizes: dict[str, Any]) -> Any:
    """The dense model cut at once, by activation magnitudes on training rows."""
    from compress.prune.build import prune_and_shrink

    source = stories.batches(stories.rows("train"), batch=16, seed=0)
    return prune_and_shrink(dense, [next(source) for _ in range(4)], **sizes)


class Losses:
    """Held-out losses of trained copies; what is known is read from the cache."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.kept = stories.cache_folder() / "pruning_table.jsonl"

    def of(self, arm: list[str], model: Any, seed: int, teacher: Any = None) -> float:
        """The loss of an arm (subject, cut) after training, by labels or by a teacher alone."""
        told = self.settings
        key = json.dumps([*arm, "labels" if teacher is None else "distilled", seed, told.steps,
                          told.batch, told.learning_rate, SCRATCH])  # fmt: skip
        lines = self.kept.read_text().splitlines() if self.kept.exists() else []
        known = {line["key"]: float(line["loss"]) for line in map(json.loads, lines)}
        if key not in known:
            known[key] = trained(model, told, seed, teacher)
            with self.kept.open("a") as stream:
                stream.write(json.dumps({"key": key, "loss": known[key]}) + "\n")
            print(key, round(known[key], 4), flush=True)
        return known[key]


def trained(model: Any, settings: Settings, seed: int, teacher: Any = None) -> float:
    """Held-out loss of a copy after training by labels, or by a teacher alone."""
    from compress.distill.build import LogitSettings, teacher_term
    from compress.teachers.local import LocalTeacher

    told = LogitSettings(teacher_weight=1.0)
    made = stories.train(
        copy.deepcopy(model), stories.rows("train"), steps=settings.steps, batch=settings.batch,
        learning_rate=settings.learning_rate, seed=seed,
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


def in_vllm(models: list[Any], settings: Settings) -> list[str]:
    """Latency ratio of each to the first, one sequence at a time, with its 95 % interval."""
    from compress.evaluate.arms import Arm
    from compress.evaluate.engines import EngineSettings
    from compress.evaluate.paired import serve_closed, summaries
    from compress.evaluate.workload import draw_lengths, make_jobs

    chosen = EngineSettings(threads=1, dtype="float32",
                            options={"max_model_len": 256, "max_num_seqs": 1})  # fmt: skip
    jobs = make_jobs(draw_lengths(12, prompt=(64, 128), new=(32, 32)), batch=1, vocab_size=512)
    said = ["1.0"]
    for model in models[1:]:
        with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
            arms = {}
            for who, module in (("baseline", models[0]), ("model", model)):
                module.save_pretrained(f"{place}/{who}")
                arms[who] = stack.enter_context(
                    Arm(who, engine="vllm", path=f"{place}/{who}", settings=chosen,
                        python=settings.python)
                )  # fmt: skip
            ratio = summaries(serve_closed(arms, jobs, rounds=3))["ratios"]["latency"]
        said.append(f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]")
    return said


def rows_of(subject: str, settings: Settings) -> list[list[Any]]:
    """The dense model's row and one for each cut."""
    dense, losses = SUBJECTS[subject](), Losses(settings)
    seeds = [int(seed) for seed in settings.seeds.split(",")]
    small = {name: pruned(dense, sizes) for name, sizes in CUTS[subject].items()}
    learns = "random" not in subject
    base = [losses.of([subject, ""], dense, seed) for seed in seeds] if learns else []
    rows: list[list[Any]] = [[subject, "none", "", mean(base), "", "", bytes_of(dense)]]
    for name, model in small.items():
        arm, row = [subject, name], ["", "", "", ""]
        if learns:
            labels = [losses.of(arm, model, seed) for seed in seeds]
            taught = [losses.of(arm, model, seed, dense) for seed in seeds]
            kept = statistics.fmean(math.exp(d - x) for d, x in zip(base, taught, strict=True))
            untrained = stories.loss_of(model, stories.rows("valid")[:256])
            row = [f"{untrained:.4f}", mean(labels), mean(taught), f"{kept:.4f}"]
        rows.append([subject, name, *row, bytes_of(model)])
    if settings.times:
        models = [dense, *small.values()]
        ratios = times(models, settings.rounds)
        heads_fit = dense.config.head_dim in range(32, 257, 32)  # of its attention kernels
        there = bool(settings.python) and heads_fit
        served = in_vllm(models, settings) if there else [""] * len(models)
        rows = [[*r, *t, v] for r, t, v in zip(rows, ratios, served, strict=True)]
    for row in rows:
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    settings = read(Settings, sys.argv[1:])
    rows = [row for subject in SUBJECTS for row in rows_of(subject, settings)]
    if settings.out and not settings.times:
        sys.exit("times=false fills the cache alone; out= needs the times")
    if settings.out:
        write(Path(settings.out), rows, settings)


def mean(losses: list[float]) -> str:
    """Mean and standard deviation; no deviation of one, nothing of none."""
    if len(losses) < 2:
        return f"{losses[0]:.4f}" if losses else ""
    return f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f}"


def write(path: Path, rows: list[list[Any]], settings: Settings) -> None:
    """The results file."""
    from sparsity_table import processor

    facts = {
        "title": "Structured pruning of real Llamas",
        "question": "What do half of the feed-forward and some heads cost, what do they give?",
        "command": "COMPRESS_TEST_DATA=... python benchmarks/pruning_table.py "
        + " ".join(sys.argv[1:]),
        "machine": f"{processor()}, {torch.get_num_threads()} thread",
        "date": time.strftime("%Y-%m-%d"),
        "columns": COLUMNS,
        "rows": rows,
        "notes": [
            f"{settings.steps} steps of {settings.batch} x {stories.LENGTH} tokens at "
            f"{settings.learning_rate:g} for every trained model, the dense one too; seeds "
            f"{settings.seeds} of data order; distilled by the dense start alone. Loss on 256 "
            "held-out rows; kept = exp(dense - distilled).",
            "Times are CPU seconds of one thread in transformers, as ratios to the dense model, "
            "batch 4 x 128 tokens (forward) and 16 new tokens at batch 1 (decoding); bytes are "
            "float32. vLLM: 64 to 128 prompt and 32 new tokens, one sequence at a time, float32, "
            "one thread, paired, with a 95 % interval"
            + ("." if settings.python else "; not timed this time."),
            "stories260k has 8 heads of 8 over a width of 64: a third of them cannot go, since a "
            "Llama's configuration demands that its heads divide its width; half of them go. vLLM "
            "has no kernel for heads of 8.",
            f"4 x 192 was trained from nothing on the stories ({SCRATCH['steps']} steps of "
            f"{SCRATCH['batch']} rows); 6 x 384 has random weights and shows time and bytes alone.",
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
