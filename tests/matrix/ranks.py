"""Many cases in one start of two ranks: `python -m tests.matrix.ranks FIRST COUNT SEED FOLDER`."""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

from tests.matrix.cases import all_cases, sample
from tests.matrix.prove import prove


def main(count: int, seed: int, folder: str) -> None:
    """Proves `count` sampled cases (0: all); rank 0 writes what failed."""
    cases = (
        [c for c in all_cases() if c.ranks == 2]
        if count == 0
        else sample(count, seed=seed, ranks=2)
    )
    failed = {}
    for number, case in enumerate(cases):
        place = Path(folder) / str(number)  # one folder for both ranks: rank 0 saves for all
        place.mkdir(exist_ok=True)
        try:
            prove(case, place)
        except Exception:
            failed[case.words] = traceback.format_exc()
            if count:
                break  # the other rank may wait for this one
    if os.environ["RANK"] == "0":
        (Path(folder) / "result.json").write_text(
            json.dumps({"cases": len(cases), "failed": failed})
        )


if __name__ == "__main__":
    main(
        int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp()
    )
