"""Many cases in one start of two ranks: `python -m tests.matrix.ranks COUNT SEED FOLDER`."""

import json
import os
import sys
import traceback
from pathlib import Path

from torch import distributed

from tests.matrix.cases import all_cases, sample
from tests.matrix.prove import exports_and_reloads, trains_and_resumes


def main(count: int, seed: int, folder: Path) -> None:
    """Proves `count` sampled cases (0: all); rank 0 writes what failed."""
    whole = [case for case in all_cases() if case.ranks == 2]
    cases = sample(count, seed=seed, ranks=2) if count else whole
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
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
