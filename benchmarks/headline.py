"""The headline: latency, throughput, size and quality of what is exported, against the original.

    python benchmarks/headline.py out=docs/results/headline.json   # trains what is missing
    python benchmarks/headline.py only=models                      # trains, exports; no timing

Originals are the embedded default's teacher (a Llama, 6 x 256) and a BERT of MiniLM's width and
depth (6 x 384), trained on a classification; students have fewer layers and are trained in W8A8.
Models lie in the cache (`headline_models`): a second run times and nothing else. Both arms run in
the same engine, in processes of their own, and take turns (`compress.evaluate.paired`).
    models=decoder,encoder   engines=vllm,onnxruntime,onnxruntime-cached   requests=24   rounds=4
    threads=1   batches=64   python=.venv-serve/bin/python
`onnxruntime-cached` has keys and values as inputs and outputs, for decoders. Rows of models and
engines that are not named stay in `out` as an earlier run wrote them.
"""

import datetime
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# last: this folder holds a program named onnx.py, which would be taken for the package
sys.path.append(sys.path.pop(0))
from headline_models import FOLDERS, ORIGINALS, RUNS, TARGETS, made, smallest
from words import read

from compress.errors import BadInput, CompressError
from compress.evaluate.arms import Arm
from compress.evaluate.engines import EngineSettings
from compress.evaluate.paired import serve_closed, summaries
from compress.evaluate.workload import draw_lengths, make_jobs
from compress.scripts.lib.run_folder import write_json

GOALS = {"latency": 0.30, "throughput": 3.0, "size": 4.0, "kept": 0.98}
COLUMNS = ["model", "engine", "original, ms", "compressed, ms", "latency ratio", "throughput ratio",
           "size ratio", "quality kept"]  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Words of the command line."""

    models: str = "decoder,encoder"
    engines: str = "vllm,onnxruntime,onnxruntime-cached"
    only: str = ""
    requests: int = 24
    rounds: int = 4
    threads: int = 1
    batches: int = 64
    python: str = ".venv-serve/bin/python"
    out: str = ""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of a model in an engine: prompt and new tokens, sequences at once."""

    prompt: tuple[int, int]
    new: int
    batch: int


LOADS = {
    ("decoder", "vllm"): Load(prompt=(64, 128), new=32, batch=32),
    ("decoder", "onnxruntime-cached"): Load(prompt=(64, 128), new=32, batch=8),
    # without a key-value cache each token costs a pass over all before it: few of them
    ("decoder", "onnxruntime"): Load(prompt=(64, 128), new=4, batch=8),
    # 128: the length of every row of the task
    ("encoder", "vllm"): Load(prompt=(128, 128), new=0, batch=32),
    ("encoder", "onnxruntime"): Load(prompt=(128, 128), new=0, batch=8),
}


def main() -> None:
    """Measure each model in each engine, and write the table after each."""
    words = sys.argv[1:]
    settings = read(Settings, words)
    if unknown := set(settings.models.split(",")) - RUNS.keys():
        sys.exit(f"unknown models: {', '.join(sorted(unknown))}; known: {', '.join(RUNS)}")
    if unknown := set(settings.engines.split(",")) - TARGETS.keys():
        sys.exit(f"unknown engines: {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")
    table = table_of(words, settings)
    for name in settings.models.split(","):
        for engine in settings.engines.split(","):
            if (name, engine) not in LOADS:
                continue  # an encoder writes nothing, so it keeps no keys and values
            subject = made(name, engine, batches=settings.batches)
            print(name, engine, subject, flush=True)
            if settings.only == "models":
                continue
            try:
                add(table, name, engine, subject, measured(name, engine, subject, settings))
            except CompressError as error:
                table["notes"].append(f"{name} in {engine}: {str(error).splitlines()[0]}")
            if settings.out:
                write_json(Path(settings.out), with_kept(Path(settings.out), table))


def with_kept(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    """The table with the rows, and what was noted of them, that an earlier run left in `path`."""
    if not path.exists():
        return table
    before = json.loads(path.read_text())
    new = {tuple(row[:2]) for row in table["rows"]}
    kept = [row for row in before["rows"] if tuple(row[:2]) not in new]
    names = [f"{model} in {engine}" for model, engine, *_ in kept]
    # from other days than this table's; `before` may be this run's own, of one row less
    days = before.get("days", dict.fromkeys(names, before["date"]))
    days = {name: days.get(name, before["date"]) for name in names}
    dated = [f"{name} was measured on {days[name]}." for name in names]
    starts = tuple(f"{name}{end}" for name in names for end in (" (", ":", " misses"))
    notes = [note for note in before["notes"] if kept and note.startswith(starts)]
    order = list(LOADS)
    return {
        **table, "rows": sorted([*kept, *table["rows"]], key=lambda r: order.index((r[0], r[1]))),
        "notes": list(dict.fromkeys([*table["notes"], *dated, *notes])), "days": days,
        **({"headline": before["headline"]} if "headline" in before else {}),
        **({"headline": table["headline"]} if "headline" in table else {}),
    }  # fmt: skip


def table_of(words: list[str], settings: Settings) -> dict[str, Any]:
    """The table without rows."""
    loads = os.getloadavg()
    return {
        "title": "The headline: what is served, against the original in the same engine",
        "question": "Is latency 70 % lower, throughput 3-5x, size 4x smaller, 98 % kept?",
        "command": " ".join(["python benchmarks/headline.py", *words]),
        "machine": machine(settings.threads), "date": datetime.date.today().isoformat(),
        "columns": COLUMNS, "rows": [],
        "notes": [
            "Ratios are compressed over original (size and throughput the other way round: above 1 "
            f"is better), with 95 % intervals over {settings.requests} paired requests; latency of "
            "one sequence (medians are not taken: means), throughput of several at once.",
            f"{settings.rounds} rounds in turns; load average {loads[0]:.1f} on {os.cpu_count()} "
            "cores at the start.",
            "Both arms have one precision where nothing is quantised: bfloat16 in vLLM, float32 in "
            "onnxruntime. Sizes are of weight files; originals are stored in float32, against a "
            "16-bit copy the size ratio is half of that shown.",
            "onnxruntime computes the prefix anew for each of 4 tokens, in both arms; "
            "onnxruntime-cached, as vLLM, writes 32 tokens from its key-value cache.",
            "In onnxruntime inputs have one calibrated scale and embeddings are int8 by rows, not "
            "trained further; in vLLM inputs have a scale a token, as trained.",
            "Students train on from their original's layers: quality above 1 says that the original"
            " had more to learn, not that compression improves a model. The decoder's, after 1,100 "
            "steps of 2,048 tokens, would still improve with more training. The encoder's six "
            "layers, trained from nothing on 6,884 rows, do worse than two of them that are "
            "trained on by labels alone, dense (accuracy 0.789).",
            *(f"{name}'s original: python scripts/train.py {' '.join(ORIGINALS[name])}"
              for name in settings.models.split(",") if name in ORIGINALS),
            *(f"{name}: python scripts/train.py {' '.join(RUNS[name])}"
              for name in settings.models.split(",")),
        ],
    }  # fmt: skip


def machine(threads: int) -> str:
    """The processor and how many of its cores took part."""
    with open("/proc/cpuinfo") as stream:
        named = next((x for x in stream if x.startswith("model name")), ": unknown")
    return f"{named.partition(':')[2].strip()}, {threads} thread(s)"


def measured(name: str, engine: str, subject: dict[str, Any], settings: Settings) -> Any:
    """Ratios and figures at one sequence (latency) and at several (throughput)."""
    load = LOADS[name, engine]
    options = {
        "vllm": {"max_model_len": 128 if load.new == 0 else 256, "max_num_seqs": load.batch},
        "onnxruntime-cached": {"cache": True},
    }  # fmt: skip
    chosen = EngineSettings(
        threads=settings.threads, dtype="bfloat16" if engine == "vllm" else None,
        options=options.get(engine, {}),
    )  # fmt: skip
    found = {}
    with ExitStack() as stack:
        arms = {
            who: stack.enter_context(
                Arm(
                    who,
                    engine=engine.removesuffix("-cached"),
                    path=path,
                    settings=chosen,
                    python=settings.python,
                )
            )
            for who, path in (("model", subject["path"]), ("baseline", subject["original"]))
        }
        vocabulary = min(int(arm.facts["vocab_size"]) for arm in arms.values())
        lengths = draw_lengths(settings.requests, prompt=load.prompt, new=(load.new, load.new))
        for batch in (1, load.batch):
            jobs = make_jobs(lengths, batch=batch, vocab_size=vocabulary)
            found[batch] = summaries(serve_closed(arms, jobs, rounds=settings.rounds))
        peaks = {who: arm.peak_bytes for who, arm in arms.items()}
    floor = None
    if engine == "vllm":
        jobs = make_jobs(lengths, batch=1, vocab_size=vocabulary)
        floor = floor_ms(subject["original"], jobs, chosen, settings)
    if not found[1].get("ratios"):
        raise BadInput(f"requests={settings.requests}: ratios need two or more")
    return {"one": found[1], "several": found[load.batch], "peaks": peaks, "load": asdict(load),
            "floor": floor}  # fmt: skip


def floor_ms(original: str, jobs: Any, chosen: EngineSettings, settings: Settings) -> float:
    """Mean latency of a model of one layer of width 32: what the engine takes for itself."""
    with tempfile.TemporaryDirectory() as place:
        smallest(Path(original), Path(place))
        with Arm("floor", engine="vllm", path=place, settings=chosen,
                 python=settings.python) as arm:  # fmt: skip
            records = serve_closed({"floor": arm}, jobs, rounds=settings.rounds)["floor"]
    return 1000 * sum(record.latency for record in records) / len(records)


def add(table: dict[str, Any], name: str, engine: str, subject: dict[str, Any], got: Any) -> None:
    """One row, its notes, and the headline where it is the embedded default's."""
    latency = got["one"]["ratios"]["latency"]
    throughput = got["several"]["ratios"]["throughput"]
    kept = subject["quality"]["kept"]
    size = subject["original_bytes"] / subject["bytes"]
    values = {"latency": latency["value"], "throughput": throughput["value"], "size": size,
              "kept": kept["value"]}  # fmt: skip
    table["rows"].append([
        name, engine, *(round(got["one"][who]["latency_ms"]["mean"], 2)
                        for who in ("baseline", "model")),
        said(latency), f"{said(throughput)} at {got['load']['batch']}", f"{size:.2f}", said(kept),
    ])  # fmt: skip
    if (name, engine) == ("decoder", "vllm"):
        table["headline"] = {
            "latency_ratio": values["latency"], "throughput_ratio": values["throughput"],
            "size_ratio": size, "quality_kept": values["kept"], "model": name, "engine": engine,
        }  # fmt: skip
    table["notes"] += notes(name, engine, subject, got, values)


def notes(name: str, engine: str, subject: Any, got: Any, values: dict[str, float]) -> list[str]:
    """Quality in its own unit, memory, and what was missed."""
    told, peaks = subject["quality"], got["peaks"]
    lines = [
        f"{name} in {engine} ({FOLDERS[name]}): {told['metric']} {told['model']:.4f}, original "
        f"{told['original']:.4f}, on {told['rows']} rows; {subject['bytes']:,} bytes of "
        f"{subject['original_bytes']:,}; peak memory {peaks['model'] / peaks['baseline']:.2f}x"
    ]
    if name == "encoder":
        lines.append(with_berts_vocabulary(engine, subject))
    missed = [
        f"{key} {value:.2f} (goal {GOALS[key]})"
        for key, value in values.items()
        if (value > GOALS[key] if key == "latency" else value < GOALS[key])
    ]
    if got["floor"] is not None:
        whole = got["one"]["baseline"]["latency_ms"]["mean"]
        lines.append(
            f"{name} in {engine}: one layer of width 32 takes {got['floor']:.2f} ms, "
            f"{got['floor'] / whole:.2f} of the original's latency: the engine's own time, below "
            "which no compression gets"
        )
    return lines + ([f"{name} in {engine} misses {', '.join(missed)}"] if missed else [])


def with_berts_vocabulary(engine: str, subject: dict[str, Any]) -> str:
    """The size ratio if the tokenizer had BERT's 30,522 tokens: counted, not measured."""
    config = json.loads((Path(subject["original"]) / "config.json").read_text())
    further = (30522 - int(config["vocab_size"])) * int(config["hidden_size"])
    own = further * 2 if engine == "vllm" else further + (further // int(config["hidden_size"])) * 4
    ratio = (subject["original_bytes"] + 4 * further) / (subject["bytes"] + own)
    kind = "bfloat16" if engine == "vllm" else "int8"
    return (
        f"encoder in {engine}: the task's tokenizer has {config['vocab_size']:,} tokens; with "
        f"BERT's 30,522 the size ratio would be {ratio:.2f} (table in {kind}; counted)"
    )


def said(ratio: dict[str, float]) -> str:
    """A value with its interval."""
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


if __name__ == "__main__":
    main()
