"""What a run folder holds, read forgivingly: any value may be missing; figures in words.

Only reading and wording belong here; pictures are in `report_plots`, pages in `html_report`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import BadInput

MISSING = "—"

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Curves by phase and term, and what had to be left out."""

    curves: dict[str, dict[str, Points]]
    left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One model of a run: its loss (or other metric) and its bytes."""

    key: str
    name: str
    loss: float | None
    perplexity: float | None
    bytes: float | None
    ratio: float | None


def read_report(run_dir: Path) -> dict[str, Any]:
    """What report.json holds.

    Raises:
        BadInput: there is no such folder or file, or it is no JSON object.
    """
    path = Path(run_dir) / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise BadInput(f"{path} is no JSON: {error}") from error
    if not isinstance(report, dict):
        raise BadInput(f"{path} holds a {type(report).__name__}; an object is expected")
    return report


def read_metrics(run_dir: Path) -> Metrics:
    """Every curve of metrics.jsonl; the last value counts where a resumed run repeats a step."""
    path = Path(run_dir) / "metrics.jsonl"
    seen: dict[tuple[str, str], dict[float, float]] = {}
    left_out = 0
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in filter(str.strip, text.splitlines()):
        entry = _metrics_line(line)
        step = finite(entry.get("step"))
        if step is None:
            left_out += 1
            continue
        for term, raw in entry.items():
            if term in ("step", "phase"):
                continue
            value = finite(raw)
            if value is None:
                left_out += 1
            else:
                seen.setdefault((str(entry.get("phase", "train")), term), {})[step] = value
    curves: dict[str, dict[str, Points]] = {}
    for (phase, term), points in seen.items():
        curves.setdefault(phase, {})[term] = sorted(points.items())
    return Metrics(curves=curves, left_out=left_out)


def _metrics_line(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:  # a killed run leaves half a line; it is counted as left out
        return {}
    return entry if isinstance(entry, dict) else {}


def pick(report: Any, dotted: str) -> Any:
    """The value at a dotted path, or None.

    >>> pick({"size": {"ratio": 4.0}}, "size.ratio"), pick({"size": None}, "size.ratio")
    (4.0, None)
    """
    for part in dotted.split("."):
        if not isinstance(report, Mapping) or part not in report:
            return None
        report = report[part]
    return report


def finite(value: Any) -> float | None:
    """A finite number as a float, anything else as None.

    >>> finite(2), finite(float("nan")), finite(True), finite("3")
    (2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        answer = float(value)
    except OverflowError:
        return None
    return answer if math.isfinite(answer) else None


def is_nats(report: Mapping[str, Any]) -> bool:
    """Whether the metric is a loss in nats a token, so that its exponential is a perplexity."""
    unit = pick(report, "quality.unit")
    return pick(report, "quality.metric") == "loss" and unit in (None, "nats/token")


MODELS = (
    ("teacher", "Teacher", "quality.teacher", "teacher_bytes"),
    ("start", "Student, dense, before training", "quality.start", "dense_bytes"),
    ("start_ptq", "The same, compressed without training (PTQ)", "quality.start_ptq", "ptq_bytes"),
    ("compressed", "Compressed student", "quality.compressed", "compressed_bytes"),
    ("dense", "Trained dense student", "quality.compare.dense", "dense_bytes"),
    ("ptq", "Trained dense, then compressed (PTQ)", "quality.compare.ptq", "ptq_bytes"),
    ("no_teacher", "Compressed, labels only", "quality.compare.no_teacher", "compressed_bytes"),
)


def model_rows(report: Mapping[str, Any]) -> list[ModelRow]:
    """The models of a run in the order of its tables; the four main ones always stand there."""
    compared = pick(report, "quality.compare") is not None
    original = original_bytes(report)
    rows = []
    for key, name, path, bytes_key in MODELS:
        if path.startswith("quality.compare") and not compared:
            continue
        loss, size = finite(pick(report, path)), _bytes(report, bytes_key)
        ratio = original / size if original and size else None
        perplexity = math.exp(loss) if loss is not None and loss < 50 and is_nats(report) else None
        rows.append(
            ModelRow(key=key, name=name, loss=loss, perplexity=perplexity, bytes=size, ratio=ratio)
        )
    return rows


def original_bytes(report: Mapping[str, Any]) -> float | None:
    """What sizes are compared with: the teacher, or the dense student where there is none."""
    return _bytes(report, "teacher_bytes") or _bytes(report, "dense_bytes")


def _bytes(report: Mapping[str, Any], key: str) -> float | None:
    value = finite(pick(report, f"size.{key}"))
    # post-training writes the same format, but what it compresses was not cut smaller
    pruned = any(str(part).startswith("pruning") for part in report)
    if value is None and key == "ptq_bytes" and not pruned:
        value = finite(pick(report, "size.compressed_bytes"))
    return value


def verified(report: Mapping[str, Any]) -> bool | None:
    """Whether every export was reloaded and found equal; None where nothing was exported."""
    exports = records(report.get("exports"))
    return all(entry.get("verified") is True for entry in exports) if exports else None


NEGLIGIBLE = 0.002
"""A loss of so many nats is within the noise of one run: no share of it means anything."""


def won_back(report: Mapping[str, Any]) -> str:
    """What training won back of the loss that quantising without training costs; "" if unknown.

    >>> won_back({"quality": {"compare": {"dense": 3.0, "ptq": 3.2, "recovered": 0.75}}})
    'Of what quantising without training loses, 75.0 % is won back.'
    """
    arms = pick(report, "quality.compare")
    dense, ptq, share = (finite(pick(arms, key)) for key in ("dense", "ptq", "recovered"))
    if dense is None or ptq is None:
        return ""
    if share is None or ptq - dense < NEGLIGIBLE:
        return "Quantising without training lost nothing that could be won back."
    return f"Of what quantising without training loses, {percent(share)} is won back."


def said_of(settings: Any) -> str:
    """A callback's main setting and those that differ from their recipe's defaults.

    >>> said_of({"density": 0.5}), said_of({})
    ('density=0.5', 'as it is by default')
    """
    target = settings.get("_target_") if isinstance(settings, Mapping) else None
    defaults = _defaults(str(target))
    main = next((key for key in defaults if key != "_target_"), None)
    told = [
        f"{key}={value}" for key, value in flat(settings)
        if not key.startswith("_") and value != MISSING
        and (key == main or value != defaults.get(key))
    ]  # fmt: skip
    return ", ".join(told) or "as it is by default"


def _defaults(target: str) -> dict[str, str]:
    import yaml

    from compress.scripts.lib.config import recipes_folder

    for path in sorted((recipes_folder() / "callbacks").glob("*.yaml")):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if settings.get("_target_") == target:
            return dict(flat(settings))
    return {}


def records(value: Any) -> list[dict[str, Any]]:
    """The mappings in a list; anything else is no record."""
    return [r for r in value if isinstance(r, dict)] if isinstance(value, list) else []


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and words.

    >>> flat({"qat": {"bits": 8, "names": ["a", "b"], "off": None}})
    [('qat.bits', '8'), ('qat.names', 'a, b'), ('qat.off', '—')]
    """
    if isinstance(value, Mapping) and value:
        return [pair for k, v in value.items() for pair in flat(v, f"{prefix}{k}.")]
    return [(prefix.rstrip(".") or "value", words(value))]


def words(value: Any) -> str:
    """Any plain value in words.

    >>> words(True), words(0.25), words(None), words(["a", 1])
    ('yes', '0.25', '—', 'a, 1')
    """
    if value is None or value == {} or value == []:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, 6)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return ", ".join(words(v) for v in value)
    return str(value)


def number(value: Any, digits: int = 4) -> str:
    """A number with so many significant digits.

    >>> number(3.14159, 3), number(1234567, 3), number(2.5e-7, 3), number(None)
    ('3.14', '1,234,567', '2.5e-07', '—')
    """
    known = finite(value)
    if known is None:
        return MISSING
    if known == int(known) and abs(known) < 1e15:
        return f"{int(known):,}"
    return f"{known:,.0f}" if 10**digits <= abs(known) < 1e15 else f"{known:.{digits}g}"


def loss_text(value: Any) -> str:
    """A loss with as many decimals as it takes to tell runs apart.

    >>> loss_text(3.45), loss_text(None)
    ('3.4500', '—')
    """
    known = finite(value)
    return MISSING if known is None else f"{known:.4f}"


def bytes_text(value: Any) -> str:
    """Bytes in decimal units, as file managers and model hubs count them.

    >>> bytes_text(5_300_000), bytes_text(812), bytes_text(None)
    ('5.30 MB', '812 B', '—')
    """
    known = finite(value)
    if known is None:
        return MISSING
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(known) >= size:
            return f"{known / size:#.3g} {unit}".replace(". ", " ")
    return f"{known:.0f} B"


def percent(value: Any) -> str:
    """A share in per cent.

    >>> percent(0.9931), percent(None)
    ('99.3 %', '—')
    """
    known = finite(value)
    return MISSING if known is None else f"{100 * known:.1f} %"


def times(value: Any) -> str:
    """A ratio.

    >>> times(3.987), times(None)
    ('3.99x', '—')
    """
    known = finite(value)
    return MISSING if known is None else f"{known:.3g}x" if known < 1000 else f"{known:,.0f}x"


def duration(value: Any) -> str:
    """Seconds as a person says them.

    >>> duration(7.25), duration(190), duration(7300), duration(None)
    ('7.2 s', '3 min 10 s', '2 h 1 min', '—')
    """
    known = finite(value)
    if known is None:
        return MISSING
    if known < 60:
        return f"{known:.1f} s"
    minutes, seconds = divmod(round(known), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"
