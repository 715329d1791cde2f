"""INT8 against fp32 in onnxruntime: the exported Q/DQ graph beside the dense one.

    python benchmarks/onnx_table.py out=docs/results/onnx.json

An encoder (BERT-shaped, 6 layers x 384) and a decoder (the embedded default's shape, 6 x 256,
vocabulary 2048), random weights, static W8A8. Arms take turns in each round; a ratio is the median
of per-round ratios to `fp32`, its interval a bootstrap over rounds. Prints one JSON line an arm.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from words import read


@dataclass(kw_only=True)
class Settings:
    """What the command line may say."""

    length: int = 128
    rounds: int = 20
    batches: str = "1,8"
    models: str = "encoder,decoder"
    threads: int = 1
    out: str = ""


def encoder() -> nn.Module:
    """MiniLM's size."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=8192, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
            intermediate_size=1536,
        )
    )  # fmt: skip


def decoder() -> nn.Module:
    """The embedded default's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
            num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {"encoder": encoder, "decoder": decoder}


def arms_of(name: str, folder: Path, settings: Settings) -> dict[str, Any]:
    """Sessions: fp32, its products fused likewise, INT8 one product a layer, INT8 as exported.

    The last one has its embeddings in int8 too.
    """
    from compress.export.onnx_layers import dense_layers, read_layers, write_layers
    from compress.export.onnx_program import trace
    from compress.export.onnx_tables import read_tables, write_tables
    from compress.export.plan import collect_plan
    from compress.export.tensorrt import save_onnx
    from compress.quantize import prepare, start

    torch.manual_seed(0)
    model = MODELS[name]()
    prepare(model, scheme="W8A8", activations="static", embeddings="W8A16:-1")
    start(model, [{"input_ids": torch.randint(0, 2048, (64,))} for _ in range(8)], samples=8)
    plan = collect_plan(model.eval())
    graph = trace(model, plan)
    dense, quantised = dense_layers(model, plan), read_layers(model, plan)
    made = {
        "fp32": (dense, False, True), "fp32, products fused": (dense, True, True),
        "int8, a product a layer": (quantised, False, True), "int8": (quantised, True, True),
        "int8, embeddings too": (quantised, True, False),
    }  # fmt: skip
    sessions = {}
    for arm, (layers, fuse, full) in made.items():
        written = graph.clone()
        write_layers(written, layers, fuse=fuse)
        write_tables(written, read_tables(model, plan, dense=full))
        path = folder / f"{name}-{len(sessions)}.onnx"
        save_onnx(written, path)
        sessions[arm] = (session(path, settings), path.stat().st_size)
    return sessions


def session(path: Path, settings: Settings) -> Any:
    """Every rewrite of onnxruntime on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = settings.threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def rounds_of(
    sessions: dict[str, Any], *, batch: int, settings: Settings
) -> dict[str, list[float]]:
    """Seconds of each arm in each round, in turns; the first two rounds warm up."""
    tokens = np.random.default_rng(0).integers(0, 2048, (batch, settings.length))
    inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    seconds: dict[str, list[float]] = {arm: [] for arm in sessions}
    for _ in range(settings.rounds + 2):
        for arm, (opened, _) in sessions.items():
            begin = time.perf_counter()
            opened.run(None, inputs)
            seconds[arm].append(time.perf_counter() - begin)
    return {arm: values[2:] for arm, values in seconds.items()}


def ratio(values: list[float], base: list[float]) -> tuple[float, float, float]:
    """The median ratio over rounds and its 95 % bootstrap interval."""
    pairs = np.array(values) / np.array(base)
    drawn = np.random.default_rng(0).choice(pairs, (2000, len(pairs)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(np.median(pairs)), float(low), float(high)


def measure(settings: Settings, keep: Callable[[list[dict[str, Any]]], None]) -> None:
    """One line for each model, batch and arm; `keep` gets all so far, so that none is lost."""
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for name in settings.models.split(","):
            sessions = arms_of(name, Path(place), settings)
            for batch in map(int, settings.batches.split(",")):
                seconds = rounds_of(sessions, batch=batch, settings=settings)
                for arm, values in seconds.items():
                    middle, low, high = ratio(values, seconds["fp32"])
                    line = {
                        "name": f"{name}, batch {batch}, {arm}", "model": name, "batch": batch,
                        "arm": arm, "ratio": round(middle, 3), "low": round(low, 3),
                        "high": round(high, 3), "speedup": round(1 / middle, 2),
                        "bytes": sessions[arm][1], "machine": machine(settings),
                    }  # fmt: skip
                    print(json.dumps(line), flush=True)
                    lines.append(line)
                keep(lines)


def machine(settings: Settings) -> str:
    """The processor and how many of its cores took part."""
    with open("/proc/cpuinfo") as stream:
        named = next((x for x in stream if x.startswith("model name")), ": unknown")
    return f"{named.partition(':')[2].strip()}, {settings.threads} thread(s)"


def table(lines: list[dict[str, Any]], settings: Settings, words: list[str]) -> dict[str, Any]:
    """The result file."""
    keys = ["model", "batch", "arm", "ratio", "low", "high", "speedup", "bytes"]
    return {
        "title": "INT8 against fp32 in onnxruntime",
        "question": "Is the exported Q/DQ graph truly faster than the dense one, for an encoder "
        "and a decoder?",
        "command": " ".join(["python benchmarks/onnx_table.py", *words]),
        "machine": machine(settings),
        "date": datetime.now(UTC).date().isoformat(),
        "columns": ["model", "batch", "arm", "latency over fp32", "95 % from", "to", "speed-up",
                    "bytes of the file"],
        "rows": [[line[key] for key in keys] for line in lines],
        "notes": [
            f"One pass over {settings.length} tokens a sequence, no key-value cache; random "
            "weights, which change no timing.",
            f"{settings.rounds} rounds; load average {os.getloadavg()[1]:.1f} on "
            f"{os.cpu_count()} cores meanwhile{undecided(lines)}.",
            *(told(lines, model) for model in dict.fromkeys(line["model"] for line in lines)),
            f"The file shrinks {shrunk(lines, 'int8')}; with int8 embeddings "
            f"{shrunk(lines, 'int8, embeddings too')}. Not 4x: the rest stays fp32.",
        ],
    }  # fmt: skip


def undecided(lines: list[dict[str, Any]]) -> str:
    """Where the intervals of the two int8 arms overlap, so that neither is shown to be faster."""
    found = {(x["model"], x["batch"], x["arm"]): x for x in lines}
    pairs = [
        (model, batch, one, found[model, batch, "int8, a product a layer"])
        for (model, batch, arm), one in found.items()
        if arm == "int8"
    ]
    same = [
        f"{m} batch {b}" for m, b, x, y in pairs if x["low"] <= y["high"] and y["low"] <= x["high"]
    ]
    return f"; fusing or not is undecided (intervals overlap) for {', '.join(same)}" if same else ""


def shrunk(lines: list[dict[str, Any]], arm: str) -> str:
    """Bytes of fp32 over an arm's, for each model."""
    sizes = {(x["model"], x["arm"]): x["bytes"] for x in lines}
    models = dict.fromkeys(model for model, _ in sizes)
    return ", ".join(f"{sizes[m, 'fp32'] / sizes[m, arm]:.1f}x ({m})" for m in models)


def told(lines: list[dict[str, Any]], model: str) -> str:
    """One model's speed-ups in words."""
    found = {(x["batch"], x["arm"]): x["speedup"] for x in lines if x["model"] == model}
    parts = [
        f"batch {batch}: int8 {found[batch, 'int8']}x ({found[batch, 'int8, a product a layer']}x "
        f"without fusing; fusing alone {found[batch, 'fp32, products fused']}x)"
        for batch in dict.fromkeys(batch for batch, _ in found)
    ]
    return f"{model}, {'; '.join(parts)}. Attention, norms and the head stay fp32 in both."


def main() -> None:
    """Measure all, print each line, write the table where `out=` says."""
    words = sys.argv[1:]
    settings = read(Settings, words)
    if unknown := set(settings.models.split(",")) - MODELS.keys():
        sys.exit(f"unknown models: {', '.join(sorted(unknown))}; known: {', '.join(MODELS)}")

    def keep(lines: list[dict[str, Any]]) -> None:
        if settings.out:
            Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(table(lines, settings, words), indent=2) + "\n"
            Path(settings.out).write_text(text)

    measure(settings, keep)


if __name__ == "__main__":
    main()
