"""As much of the matrix as a time allows, in a seeded order: `python -m tests.matrix.sweep`.

    python -m tests.matrix.sweep --minutes 60 --out docs/results/matrix.json

One process, so cases of one rank; `pytest -m nightly tests/matrix` runs those of two as well.
"""

import argparse
import json
import platform
import random
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

import torch

from tests.matrix.cases import all_cases
from tests.matrix.prove import prove


def main() -> None:
    """Runs cases until the time is over; writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for case in all_cases() if case.ranks == 1]
    random.Random(given.seed).shuffle(cases)
    end, failed, ran = time.monotonic() + 60 * given.minutes, {}, []
    for case in cases:
        if time.monotonic() > end:
            break
        try:
            with tempfile.TemporaryDirectory() as folder:
                prove(case, Path(folder))
        except Exception as error:
            failed[case.words] = f"{type(error).__name__}: {str(error)[:200]}"
            print(case.words, failed[case.words], flush=True)
        ran.append(case)
        if given.out:
            text = json.dumps(table(ran, failed, given), indent=1)
            given.out.write_text(text + "\n")
    print(f"{len(ran)} cases, {len(failed)} failed", flush=True)


def table(ran: list, failed: dict[str, str], given: argparse.Namespace) -> dict[str, object]:
    """How many cases of each size and setting ran, and every one that failed."""
    key = lambda case: (len(case.kinds), case.precision, case.accumulate)  # noqa: E731
    counts, bad = Counter(map(key, ran)), Counter(key(c) for c in ran if c.words in failed)
    whole = all_cases()
    return {
        "title": "Matrix of methods and settings",
        "question": "Does every combination train, resume bit for bit, export, and reload equal?",
        "command": f"python -m tests.matrix.sweep --minutes {given.minutes:g} --seed {given.seed}",
        "machine": f"{platform.machine()}, 1 core",
        "date": date.today().isoformat(),
        "columns": ["methods", "precision", "accumulation", "cases run", "failed"],
        "rows": [[*group, counts[group], bad[group]] for group in sorted(counts)],
        "notes": [
            f"{len(ran)} cases of one rank ran, drawn from {sum(c.ranks == 1 for c in whole)}; the "
            f"whole matrix has {len(whole)}, half of them on two ranks.",
            f"{len(failed)} failed.",
            *(f"Failed: {words}: {why}" for words, why in failed.items()),
        ],
    }


if __name__ == "__main__":
    main()
