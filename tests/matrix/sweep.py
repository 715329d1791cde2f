"""As much of the matrix as a time allows, in a seeded order: `python -m tests.matrix.sweep`.

    python -m tests.matrix.sweep --ranks 1 --minutes 60 --out docs/results/matrix.json

Cases of two ranks start some at a time, for what a start of two processes costs.
"""

import argparse
import json
import platform
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from tests.matrix.cases import RANKS, Case, all_cases
from tests.matrix.prove import prove
from tests.matrix.ranks import prove_on_ranks

AT_ONCE = {1: 1, 2: 16}
SECONDS_OF_A_CASE = 300


def main() -> None:
    """Runs cases until the time is over; writes the table after each start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--ranks", type=int, choices=RANKS, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for case in all_cases() if case.ranks == given.ranks]
    random.Random(given.seed).shuffle(cases)
    end, failed, ran = time.monotonic() + 60 * given.minutes, {}, []
    for start in range(0, len(cases), AT_ONCE[given.ranks]):
        if time.monotonic() > end:
            break
        some = cases[start : start + AT_ONCE[given.ranks]]
        for words, why in outcomes(some).items():
            failed[words] = why
            print(words, why, flush=True)
        ran += some
        if given.out:
            text = json.dumps(table(ran, failed, given), indent=1)
            given.out.write_text(text + "\n")
    print(f"{len(ran)} cases, {len(failed)} failed", flush=True)


def outcomes(cases: Sequence[Case]) -> dict[str, str]:
    """What failed of some cases of the same number of ranks: words -> the last line of why."""
    with tempfile.TemporaryDirectory() as folder:
        if cases[0].ranks == 1:
            return {case.words: why for case in cases if (why := failure(case, Path(folder)))}
        try:
            told = prove_on_ranks(cases, Path(folder), timeout=SECONDS_OF_A_CASE * len(cases))
        except subprocess.SubprocessError as error:
            # a rank that died took the others along: none of them is proven
            return {case.words: f"{type(error).__name__}: {str(error)[-200:]}" for case in cases}
        return {words: why.strip().splitlines()[-1][:200] for words, why in told.items()}


def failure(case: Case, folder: Path) -> str:
    """Why one case of one rank failed; nothing where it held."""
    try:
        prove(case, folder)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return ""


def table(ran: list, failed: dict[str, str], given: argparse.Namespace) -> dict[str, object]:
    """How many cases of each size and setting ran, and every one that failed."""
    key = lambda case: (len(case.kinds), case.precision, case.accumulate)  # noqa: E731
    counts, bad = Counter(map(key, ran)), Counter(key(c) for c in ran if c.words in failed)
    whole = all_cases()
    ranks = "one rank" if given.ranks == 1 else f"{given.ranks} ranks"
    return {
        "title": f"Matrix of methods and settings, {ranks}",
        "question": "Does every combination train, resume bit for bit, export, and reload equal?",
        "command": f"python -m tests.matrix.sweep --ranks {given.ranks} "
        f"--minutes {given.minutes:g} --seed {given.seed}",
        "machine": f"{platform.machine()}, 1 core a rank",
        "date": date.today().isoformat(),
        "columns": ["methods", "precision", "accumulation", "cases run", "failed"],
        "rows": [[*group, counts[group], bad[group]] for group in sorted(counts)],
        "notes": [
            f"{len(ran)} cases of {ranks} ran, drawn from "
            f"{sum(c.ranks == given.ranks for c in whole)}; the whole matrix has {len(whole)}.",
            f"{len(failed)} failed.",
            *(f"Failed: {words}: {why}" for words, why in failed.items()),
        ],
    }


if __name__ == "__main__":
    main()
