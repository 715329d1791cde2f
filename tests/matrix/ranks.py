"""Cases in one start of two ranks: `python -m tests.matrix.ranks FOLDER` proves `cases.json`'s."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from torch import distributed

from tests.matrix.cases import Case, all_cases
from tests.matrix.prove import exports_and_reloads, trains_and_resumes

RANKS = 2


def prove_on_ranks(cases: Sequence[Case], folder: Path, *, timeout: float) -> dict[str, str]:
    """Starts the ranks; answers what failed: words of a case -> traceback.

    Raises:
        subprocess.SubprocessError: the ranks died or took too long.
    """
    (folder / "cases.json").write_text(json.dumps([case.words for case in cases]))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*start, f"--nproc-per-node={RANKS}", "-m", "tests.matrix.ranks", str(folder)]
    subprocess.run(command, check=True, timeout=timeout)
    result = json.loads((folder / "result.json").read_text())
    assert result["cases"] == len(cases)
    return result["failed"]


def main(folder: Path) -> None:
    """One rank's work; rank 0 writes what failed."""
    known = {case.words: case for case in all_cases()}
    cases = [known[words] for words in json.loads((folder / "cases.json").read_text())]
    failed, trained = {}, []
    for number, case in enumerate(cases):
        place = folder / str(number)  # one folder for both ranks: rank 0 saves for all
        place.mkdir(exist_ok=True)
        try:
            trained.append((case, trains_and_resumes(case, place), place))
        except Exception:
            failed[case.words] = traceback.format_exc()
    # before the exports, which rank 0 makes alone: their libraries wait for ranks that are there
    distributed.barrier()
    distributed.destroy_process_group()
    if os.environ["RANK"] == "0":
        for case, (module, callbacks), place in trained:
            try:
                exports_and_reloads(module, callbacks, place)
            except Exception:
                failed[case.words] = traceback.format_exc()
        (folder / "result.json").write_text(json.dumps({"cases": len(cases), "failed": failed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
