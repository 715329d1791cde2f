"""What each scheme costs a real Llama: after training, after calibration alone, and with a teacher.

    COMPRESS_TEST_DATA=DIR python benchmarks/quantization_table.py out=docs/results/NAME.json

The subject is `stories.adapted()`: dense model, teacher and starting point alike. Every arm is
measured on the same held-out rows; `part=tune` tries settings on others. Finished arms are
kept in the cache, so that a stopped run goes on; `fresh=true` measures them again, and
`measure=false` writes what is there, each trained arm by the best settings that were tried.
Rows of schemes that are not named stay in `out` as an earlier run wrote them.
"""

import copy
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import stories
from words import read

SCHEMES: dict[str, dict[str, Any]] = {
    "W8A8": {"scheme": "W8A8"},
    "W8A8 static": {"scheme": "W8A8", "activations": "static", "observer": "mse"},
    "FP8_DYNAMIC": {"scheme": "FP8_DYNAMIC"},
    "W4A16 g32": {"scheme": "W4A16:32"},
    "W4A8 g32": {"scheme": "W4A8:32"},
    "NVFP4": {"scheme": "NVFP4"},
    "MXFP4": {"scheme": "MXFP4"},
    "W3A16 g32": {"scheme": "W3A16:32"},
    "W2A16 g32": {"scheme": "W2A16:32"},
}
GOALS = {"W4A16 g32": 0.96, "W4A8 g32": 0.96, "W3A16 g32": 0.80}
STARTS = ("rtn", "mse", "smoothquant", "gptq")
CALIBRATION_ROWS = 128


@dataclass(kw_only=True)
class Settings:
    """What the command line may say; `schemes` and `seeds` are lists with commas."""

    schemes: str = "W8A8,W4A16 g32,W4A8 g32,W3A16 g32,W2A16 g32"
    seeds: str = "0,1,2"
    steps: int = 0  # 0: the scheme's own, see TRAINING
    batch: int = 16
    learning_rate: float = 0.0  # likewise
    label_weight: float = 0.5
    scale_rate: float = 1.0
    rows: int = 256
    part: str = "report"
    arms: str = "ptq,qat,distilled"
    fresh: bool = False
    measure: bool = True
    out: str = ""


TRAINING: dict[str, tuple[int, float]] = {
    "W8A8": (300, 1e-4),
    "W4A16 g32": (4000, 5e-4),
    "W4A8 g32": (4000, 5e-4),
    "W3A16 g32": (1500, 1e-3),
    "W2A16 g32": (8000, 2e-3),
}
"""Steps and peak learning rate, tried on other rows than the table's: coarser grids, farther."""


def training_of(scheme: str, settings: Settings) -> tuple[int, float]:
    """Steps and learning rate: what the command line says, or the scheme's own."""
    steps, rate = TRAINING.get(scheme, (400, 5e-4))
    return settings.steps or steps, settings.learning_rate or rate


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Token rows as a data set, for calibration."""

    def __init__(self, rows_RL: torch.Tensor) -> None:
        self.rows_RL = rows_RL

    def __len__(self) -> int:
        return len(self.rows_RL)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows_RL[index]}


class Table:
    """Measures arms, each once: what is known is read from the cache."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dense = stories.adapted().eval()
        self.train_rows = stories.rows("train")
        held_out = stories.rows("valid")
        count = settings.rows
        self.rows = held_out[:count] if settings.part == "report" else held_out[-count:]
        self.tried: list[str] = []
        self.kept = stories.cache_folder() / "quantization_table.jsonl"

    def measured(self, arm: dict[str, Any], measure: Any) -> float:
        """The loss of an arm."""
        key = json.dumps({**arm, "rows": self.settings.rows, "part": self.settings.part,
                          "subject": stories.ADAPT}, sort_keys=True)  # fmt: skip
        if self.kept.exists() and not self.settings.fresh:
            for line in reversed(self.kept.read_text().splitlines()):
                known = json.loads(line)
                if known["key"] == key:
                    return float(known["loss"])
        if not self.settings.measure:
            return math.nan
        begin = time.perf_counter()
        loss = stories.loss_of(measure(), self.rows)
        line = {"key": key, "loss": loss, "seconds": round(time.perf_counter() - begin, 1)}
        with self.kept.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps({**arm, "loss": round(loss, 5), "seconds": line["seconds"]}), flush=True)
        return loss

    def quantized(self, scheme: str, start: str, seed: int) -> Any:
        """A copy of the dense model under a scheme, not trained."""
        from compress.quantize import prepare
        from compress.quantize import start as start_from

        model = copy.deepcopy(self.dense)
        prepare(model, scale_learning_rate=self.settings.scale_rate, **SCHEMES[scheme])
        start_from(model, Rows(self.train_rows), init=start, samples=CALIBRATION_ROWS, seed=seed)
        return model

    def trained(self, model: Any, *, scheme: str, seed: int, distil: bool) -> Any:
        """The same after training, by labels or by the dense model's distributions."""
        from compress.distill.build import LogitSettings, teacher_term
        from compress.teachers.local import LocalTeacher

        steps, rate = training_of(scheme, self.settings)
        share = self.settings.label_weight if distil else 1.0
        told = LogitSettings(teacher_weight=1.0 - share)
        return stories.train(
            model, self.train_rows, steps=steps, batch=self.settings.batch,
            learning_rate=rate, seed=seed, label_weight=share,
            teacher=LocalTeacher(copy.deepcopy(self.dense)) if distil else None,
            terms=(lambda step: teacher_term(step, told),) if distil else (),
        )  # fmt: skip

    def ptq(self, scheme: str, seed: int) -> dict[str, float]:
        """Loss after each post-training start."""
        starts = STARTS if "A8" in scheme or "FP" in scheme else ("rtn", "mse", "gptq")
        return {
            start: self.measured(
                {"arm": "ptq", "scheme": scheme, "start": start, "seed": seed},
                lambda start=start: self.quantized(scheme, start, seed),
            )
            for start in starts
        }

    def best_tried(self, arm: str, scheme: str, seed: int) -> float:
        """The least loss among the trained arms in the cache; NaN where there is none."""
        wanted = {"arm": arm, "scheme": scheme, "seed": seed, "rows": self.settings.rows,
                  "part": self.settings.part}  # fmt: skip
        lines = [json.loads(line) for line in self.kept.read_text().splitlines()]
        tried = [(line["loss"], json.loads(line["key"])) for line in lines]
        fitting = [t for t in tried if wanted.items() <= t[1].items()]
        if not fitting:
            return math.nan
        loss, key = min(fitting, key=lambda pair: pair[0])
        told = {k: key[k] for k in ("steps", "learning_rate", "label_weight") if k in key}
        self.tried.append(f"{scheme}, {arm}: best of {len(fitting)} setting(s): {told}.")
        return float(loss)

    def trained_loss(self, scheme: str, start: str, seed: int, *, distil: bool) -> float:
        """Loss of one trained arm."""
        if not self.settings.measure:
            return self.best_tried("distilled" if distil else "qat", scheme, seed)
        steps, rate = training_of(scheme, self.settings)
        arm = {"arm": "distilled" if distil else "qat", "scheme": scheme, "start": start,
               "seed": seed, "steps": steps, "batch": self.settings.batch,
               "learning_rate": rate,
               "label_weight": self.settings.label_weight if distil else 1.0,
               "scale_rate": self.settings.scale_rate}  # fmt: skip
        return self.measured(
            arm,
            lambda: self.trained(
                self.quantized(scheme, start, seed), scheme=scheme, seed=seed, distil=distil
            ),
        )


def spread(values: list[float]) -> str:
    """Mean, standard deviation and number of seeds, of those that were measured."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "not measured"
    if len(values) == 1:
        return f"{values[0]:.4f} (1 seed)"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} ({len(values)})"


def row_of(table: Table, scheme: str, dense: float, seeds: list[int]) -> list[Any]:
    """One row: PTQ, QAT, QAT + distillation, and the share of the PTQ gap each recovers."""
    arms = table.settings.arms.split(",")
    starts = [table.ptq(scheme, seed) for seed in seeds]
    best = min(starts[0], key=lambda name: statistics.mean(s[name] for s in starts))
    ptq = [s[best] for s in starts]
    row: list[Any] = [scheme, best, spread([s["rtn"] for s in starts]), spread(ptq)]
    for arm in ("qat", "distilled"):
        if arm not in arms:
            row += ["", ""]
            continue
        losses = [table.trained_loss(scheme, best, s, distil=arm == "distilled") for s in seeds]
        pairs = [(p, x) for p, x in zip(ptq, losses, strict=True) if not math.isnan(x)]
        losses = [x for _, x in pairs]
        shares = [(p - x) / (p - dense) for p, x in pairs]
        row += [spread(losses), round(statistics.mean(shares), 3) if shares else ""]
    if arms[-1] == "distilled" and row[-1] != "":
        row.append(f"{100 * math.expm1(statistics.mean(losses) - dense):+.2f} %")
    return row + [""] * (len(COLUMNS) - len(row))


COLUMNS = [
    "scheme", "best start", "RTN loss", "best PTQ loss", "QAT loss", "QAT recovers",
    "QAT + distillation loss", "QAT + distillation recovers", "perplexity over dense",
]  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    settings = read(Settings, sys.argv[1:])
    table = Table(settings)
    dense = table.measured({"arm": "dense"}, lambda: table.dense)
    seeds = [int(seed) for seed in settings.seeds.split(",")]
    rows = [row_of(table, scheme, dense, seeds) for scheme in settings.schemes.split(",")]
    for row in rows:
        print(json.dumps(dict(zip(COLUMNS, row, strict=False))))
    if settings.out:
        write(Path(settings.out), table, dense, rows)


def write(path: Path, table: Table, dense: float, rows: list[list[Any]]) -> None:
    """The results file: what was asked, on what, how, and which goals were met."""
    settings = table.settings
    rows, kept_notes = with_kept(path, rows)
    words = " ".join(word for word in sys.argv[1:] if not word.startswith("measure="))
    rates = {scheme: training_of(scheme, settings) for scheme in settings.schemes.split(",")}
    facts = {
        "title": "Quantisation-aware training of a real Llama",
        "question": "How much of what post-training quantisation loses does training win back?",
        "command": f"COMPRESS_TEST_DATA=... python benchmarks/quantization_table.py {words}",
        "machine": f"{processor()}, {torch.get_num_threads()} thread",
        "date": time.strftime("%Y-%m-%d"),
        "columns": COLUMNS,
        "rows": rows,
        "notes": [
            f"Subject, start and teacher: stories260k after {stories.ADAPT['steps']} steps on the "
            f"lower-cased stories; dense loss {dense:.4f} nats/token on {settings.rows} held-out "
            f"rows of {stories.LENGTH} tokens, {PARTS[settings.part]}.",
            *(training_notes(settings, rates) if settings.measure else dict.fromkeys(table.tried)),
            "Above 100 %: students train on, and the dense model, adapted for "
            f"{stories.ADAPT['steps']} steps, had more to learn.",
            f"Seeds {settings.seeds}: of calibration rows ({CALIBRATION_ROWS}) and of training "
            "order; with several, mean ± standard deviation. Best PTQ start of rtn, mse, "
            "smoothquant (where inputs are quantised) and gptq.",
            *kept_notes,
            *verdicts(rows),
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def with_kept(path: Path, rows: list[list[Any]]) -> tuple[list[list[Any]], list[str]]:
    """The new rows among those of other schemes that `path` holds, and what it notes of these."""
    if not path.exists():
        return rows, []
    before = json.loads(path.read_text())
    new = {row[0]: row for row in rows}
    kept = {row[0]: row for row in before["rows"] if row[0] not in new}
    notes = [n for n in before["notes"] if n.startswith(tuple(f"{name}, " for name in kept))]
    told = f"Measured {before['date']}: {', '.join(kept)}." if kept else ""
    order = sorted(kept | new, key=list(SCHEMES).index)
    return [(kept | new)[name] for name in order], [*([told] if told else []), *notes]


PARTS = {
    "report": "on which no setting was tried",
    "tune": "the rows that settings are tuned on: flattering to the trained arms",
}


def training_notes(settings: Settings, rates: dict[str, tuple[int, float]]) -> list[str]:
    """How the trained arms were trained."""
    if settings.arms == "ptq":
        return []
    return [
        f"Training: (steps, peak rate) {json.dumps(rates)} of {settings.batch} x "
        f"{stories.LENGTH} tokens, AdamW, cosine to 0; QAT learns from labels, QAT + distillation "
        f"from labels ({settings.label_weight}) and the dense model's distributions "
        f"({1 - settings.label_weight}). Steps and rates were tried on other rows, with seed 0.",
    ]


def verdicts(rows: list[list[Any]]) -> list[str]:
    """Each goal, met or missed."""
    said = []
    for row in rows:
        scheme, share = row[0], row[7]
        if scheme in GOALS and share != "":
            met = "met" if share >= GOALS[scheme] else "missed"
            said.append(f"{scheme}: recovers {share:.0%}; goal {GOALS[scheme]:.0%}, {met}.")
        whole = row[-1] != ""
        worse = float(row[-1].removesuffix(" %")) if whole else None
        if not whole:
            said.append(f"{scheme}: trained arms not measured here; the goal for them is open.")
        limit = {"W2A16 g32": 15.0, "W8A8": 0.3}.get(scheme)
        if worse is not None and limit is not None:
            met = "met" if worse < limit else "missed"
            said.append(f"{scheme}: perplexity {worse:+.2f} %; goal below {limit} %, {met}.")
    return said


def processor() -> str:
    """Its name."""
    with open("/proc/cpuinfo") as lines:
        named = next((x for x in lines if x.startswith("model name")), ": unknown")
    return named.partition(":")[2].strip()


if __name__ == "__main__":
    main()
