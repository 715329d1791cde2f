"""Two models on the same requests, in turns, so that a drifting machine slows both alike."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compress.errors import BadInput
from compress.evaluate.arms import Arm
from compress.evaluate.intervals import bootstrap_interval
from compress.evaluate.latency import Record, summarise
from compress.evaluate.workload import Job

WARM_UP = 2
"""Jobs of each arm that are served and not counted."""


def serve_closed(
    arms: Mapping[str, Arm], jobs: Sequence[Job], *, rounds: int = 4, warm_up: int = WARM_UP
) -> dict[str, list[Record]]:
    """Each job when the one before is done; arms take turns by blocks, and turns are swapped.

    Moments of later blocks continue those of earlier ones, as if no other arm had been between.

    Raises:
        BadInput: fewer jobs than rounds.
    """
    if not 1 <= rounds <= len(jobs):
        raise BadInput(f"rounds={rounds} needs as many requests, there are {len(jobs)}")
    for arm in arms.values():
        arm.serve(list(jobs[:warm_up]))
    found: dict[str, list[Record]] = {name: [] for name in arms}
    for number, block in enumerate(_blocks(jobs, rounds)):
        order = list(arms) if number % 2 == 0 else list(arms)[::-1]
        for name in order:
            served = arms[name].serve(block)
            before = found[name][-1].moments[-1] if found[name] else 0.0
            found[name] += [_later(record, before) for record in served]
    return found


def serve_open(
    arms: Mapping[str, Arm], jobs: Sequence[Job], arrivals: Sequence[float], *,
    warm_up: int = WARM_UP,
) -> dict[str, list[Record]]:  # fmt: skip
    """Each job at its time, whether or not the one before is done; the same times for all arms."""
    found = {}
    for name, arm in arms.items():
        arm.serve(list(jobs[:warm_up]))
        found[name] = arm.serve(list(jobs), arrivals)
    return found


def summaries(
    found: Mapping[str, Sequence[Record]], *, price_per_hour: float | None = None,
    open_loop: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Each arm's figures, and the model's over the baseline's with 95 % intervals over jobs."""
    result: dict[str, Any] = {
        name: summarise(records, price_per_hour=price_per_hour) for name, records in found.items()
    }
    if {"model", "baseline"} <= set(found):
        result["ratios"] = ratios(found["model"], found["baseline"])
        if open_loop:  # the load is given: what is served a second says nothing of the arms
            result["ratios"].pop("throughput", None)
    return result


def ratios(model: Sequence[Record], baseline: Sequence[Record]) -> dict[str, Any]:
    """Model over baseline: latencies below 1 are faster; throughput above 1 is more."""
    pairs: dict[str, tuple[list[float], list[float]]] = {
        "latency": ([r.latency for r in model], [r.latency for r in baseline]),
        "first_token": ([r.first for r in model], [r.first for r in baseline]),
    }
    ours, theirs = ([r.per_token for r in side] for side in (model, baseline))
    if None not in ours and None not in theirs:
        pairs["per_token"] = ([x for x in ours if x], [x for x in theirs if x])
    # equal work: the shares of time are the shares of throughput, upside down
    pairs["throughput"] = pairs["latency"][::-1]
    found = {}
    for name, (a, b) in pairs.items():
        if len(a) > 1 and len(a) == len(b):
            interval = bootstrap_interval(a, b, statistic="ratio")
            found[name] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return found


def _blocks(jobs: Sequence[Job], rounds: int) -> Iterator[list[Job]]:
    size = -(-len(jobs) // rounds)
    for start in range(0, len(jobs), size):
        yield list(jobs[start : start + size])


def _later(record: Record, seconds: float) -> Record:
    return Record(
        arrival=record.arrival + seconds,
        moments=tuple(moment + seconds for moment in record.moments),
        sequences=record.sequences, prompt_tokens=record.prompt_tokens, written=record.written,
    )  # fmt: skip
