"""Broken inputs against what reads them: an error of ours, or success; nothing else.

`python -m tests.fuzz.attack --inputs 10000 --seed 0 --out docs/results/fuzz.json`
"""

import argparse
import contextlib
import io
import json
import platform
import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

from compress.errors import CompressError
from tests.fuzz import inputs
from tests.fuzz.readers import Readers

SECONDS, WALL_SECONDS = 30, 300
"""More CPU time is a hang, whatever else the machine does; so is waiting for so long."""

SHARES = {
    "data files": 0.35, "data caches": 0.05, "checkpoints": 0.2, "safetensors": 0.06,
    "onnx": 0.04, "programs": 0.05, "recipes": 0.25,
}  # fmt: skip


class Attacks:
    """One method a kind of input; each makes one from `draw` and has it read."""

    def __init__(self, folder: Path) -> None:
        """Makes the sound inputs that are then broken."""
        self.readers = Readers(folder)

    def recipes(self, draw: random.Random) -> None:
        self.readers.recipe(inputs.words(draw))

    def data_files(self, draw: random.Random) -> None:
        self.readers.data_file(*inputs.data_file(draw))

    def data_caches(self, draw: random.Random) -> None:
        victim = draw.choice(self.readers.cache_files())
        self.readers.cache_file(victim, inputs.damaged(victim.read_bytes(), draw))

    def checkpoints(self, draw: random.Random) -> None:
        self.readers.checkpoint(inputs.damaged(self.readers.sound["checkpoint"], draw))

    def safetensors(self, draw: random.Random) -> None:
        broken = draw.random() < 0.5
        whole = self.readers.sound["safetensors"]
        data = inputs.damaged(whole, draw) if broken else inputs.safetensors_header(draw)
        self.readers.safetensors(data)

    def onnx(self, draw: random.Random) -> None:
        self.readers.onnx(inputs.damaged(self.readers.sound["onnx"], draw))

    def programs(self, draw: random.Random) -> None:
        break_it = inputs.damaged if draw.random() < 0.2 else inputs.program_archive
        self.readers.program(break_it(self.readers.sound["program"], draw))


def attack(
    count: int,
    *,
    seed: int,
    kinds: tuple[str, ...] = tuple(SHARES),
    tell: Callable[[list[dict]], None] = lambda rows: None,
) -> list[dict]:
    """Figures for each kind; `other` holds what was no error of ours; `tell` hears them so far."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        attacks = Attacks(Path(folder))
        for kind in kinds:
            found.append(_attack_kind(attacks, kind, max(int(count * SHARES[kind]), 1), seed))
            tell(found)
    return found


def _attack_kind(attacks: Attacks, kind: str, count: int, seed: int) -> dict:
    tally: Counter[str] = Counter()
    others: dict[str, str] = {}
    slowest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, _too_long)
    for number in range(count):
        start = time.process_time()
        signal.alarm(WALL_SECONDS)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            with (
                contextlib.redirect_stderr(io.StringIO()),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                getattr(attacks, kind.replace(" ", "_"))(random.Random(f"{kind} {seed} {number}"))
            tally["accepted"] += 1
        except CompressError:
            tally["refused"] += 1
        except TimeoutError:
            tally["hangs"] += 1
            others[f"{number}: hang"] = traceback.format_exc()
        except Exception as error:
            tally["other"] += 1
            others[f"{number}: {type(error).__name__}"] = traceback.format_exc()
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    ends = {end: tally[end] for end in ("refused", "accepted", "other", "hangs")}
    return {
        "input": kind, "inputs": count, **ends,
        "slowest_cpu_s": round(slowest, 2), "memory_grown_mb": round(grown), "others": others,
    }  # fmt: skip


def _too_long(*_: object) -> None:
    raise TimeoutError


def main() -> None:
    """Prints the figures; writes them where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    def tell(rows: list[dict]) -> None:
        for name, trace in list(rows[-1]["others"].items())[:5]:
            print(rows[-1]["input"], name, trace, sep="\n")
        print({k: v for k, v in rows[-1].items() if k != "others"}, flush=True)
        if given.out:
            _write(given.out, rows, given)

    attack(given.inputs, seed=given.seed, tell=tell)


def _write(path: Path, rows: list[dict], given: argparse.Namespace) -> None:
    columns = [name for name in rows[0] if name != "others"]
    total = sum(row["inputs"] for row in rows)
    surprises = sum(row["other"] + row["hangs"] for row in rows)
    table = {
        "title": "Fuzzing",
        "question": "Is every broken input refused in our own words, without a hang?",
        "command": f"python -m tests.fuzz.attack --inputs {given.inputs} --seed {given.seed}",
        "machine": f"{platform.machine()}, 2 cores",
        "date": date.today().isoformat(),
        "columns": columns,
        "rows": [[row[name] for name in columns] for row in rows],
        "notes": [
            f"{total} inputs; {surprises} of them ended otherwise than accepted or refused by an "
            "error of ours. Accepted: the damage left the input sound.",
            "`memory_grown_mb` is the growth of the peak over all inputs of the kind.",
        ],
    }
    path.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
