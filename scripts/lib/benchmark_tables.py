"""A benchmark's figures on the terminal, and its plot: latency against load."""

from pathlib import Path
from typing import Any

from compress.evaluate.models import weight_bytes
from compress.scripts.lib.tables import _console, _say, _table

ARMS = ("model", "baseline")


def print_run(run: dict[str, Any]) -> None:
    """One run: each arm's latencies and throughput, what failed, then the ratios."""
    console, arms = _console(), {name: run[name] for name in ARMS if name in run}
    failed = {name: said for name, figures in arms.items() if (said := _failed(figures))}
    load = f"concurrency {run['concurrency']}" if "concurrency" in run else f"{run['rate']} a s"
    heads = ["first token", "per token", "mean", "P50", "P95", "P99", "tokens/s", "requests/s",
             *(["failed"] if failed else [])]  # fmt: skip
    table = _table(
        console, f"{run['loop']} loop, {load} (milliseconds)", ("arm", "left"),
        *((head, "right") for head in heads),
    )  # fmt: skip
    for name, figures in arms.items():
        table.add_row(name, *_cells(figures), *([failed.get(name, "0")] if failed else []))
    console.print(table)
    if failed and len(arms) > 1:
        counts = ", ".join(f"{said} of {name}" for name, said in failed.items())
        console.print(_say(console, f"no ratios: requests failed ({counts}), and the answered ones "
                                    "alone do not compare"))  # fmt: skip
    for name, ratio in run.get("ratios", {}).items():
        ends = f" [{ratio['low']:.3f}, {ratio['high']:.3f}]" if "low" in ratio else ""
        said = f"{ratio['value']:.3f}{ends}"
        console.print(_say(console, f"{name}, model / baseline: {said}"))


def _failed(figures: dict[str, Any]) -> str:
    """Requests without an answer, of all that were sent; empty where all have one.

    >>> _failed({"requests": 2, "failed": 14}), _failed({"requests": 2})
    ('14 of 16', '')
    """
    failed = figures.get("failed", 0)
    return f"{failed} of {failed + figures['requests']}" if failed else ""


def _cells(figures: dict[str, Any]) -> list[str]:
    latency = figures["latency_ms"]
    times = [figures["first_token_ms"].get("mean"), figures["per_token_ms"].get("mean"),
             *(latency.get(key) for key in ("mean", "p50", "p95", "p99"))]  # fmt: skip
    rates = [figures["tokens_per_second"], figures["requests_per_second"]]
    return ["-" if value is None else f"{value:,.2f}" for value in (*times, *rates)]


def load_plot(result: dict[str, Any], path: Path) -> None:
    """Latency against served load, closed and open loops apart; one line a percentile and arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), squeeze=False)
    for axis, loop in zip(axes[0], ("closed", "open"), strict=True):
        runs = [run for run in result["runs"] if run["loop"] == loop]
        for name, colour in zip(ARMS, ("tab:blue", "tab:orange"), strict=True):
            points = [run[name] for run in runs if name in run]
            for key, style in (("p50", "-o"), ("p95", "--s")):
                axis.plot(
                    [p["requests_per_second"] for p in points],
                    [p["latency_ms"][key] for p in points],
                    style, color=colour, label=f"{name}, {key.upper()}",
                )  # fmt: skip
        axis.set(title=f"{loop} loop", xlabel="requests a second", ylabel="latency, ms")
        axis.set_ylim(bottom=0)
        if runs:
            axis.legend()
    figure.suptitle(f"Latency against load: {result['engine']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def size_of(path: str) -> int | None:
    """Bytes of a model's weight files; None for a name on the hub."""
    place = Path(path)
    if not place.exists():
        return None
    return weight_bytes(place if place.is_dir() else place.parent)
