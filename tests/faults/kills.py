"""Many kills in a row, at moments of CPU time that a seed draws; what each interrupted is counted.

    python -m tests.faults.kills --kills 50 --out docs/results/kills.json

Runs are children of one process that has imported everything: a kill costs no start. A run is
killed and started again until it has ended; then its weights are compared with those of a run that
was left alone, bit for bit.
"""

import argparse
import json
import os
import platform
import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import load_file

from compress.scripts.lib.checkpoints import load_checkpoint
from tests.faults.tiny_run import STEPS, run

TICKS = os.sysconf("SC_CLK_TCK")


def start(folder: Path) -> int:
    """The process of a run in this folder."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        run(folder)
        status = 0
    except BaseException:
        (folder / "error.txt").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def cpu_seconds(process: int) -> float:
    """What it has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def kill_after(process: int, seconds: float) -> bool:
    """Kills it at this CPU time; whether it was still running."""
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if cpu_seconds(process) >= seconds:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return True
        time.sleep(0.002)
    return False


def interrupted(folder: Path) -> str:
    """What a kill interrupted, by what lies in the folder."""
    names = {path.name for path in folder.iterdir()}
    if "export" in names:
        return "after the export"
    if any(name.startswith(".last.ckpt.") for name in names):
        return "writing a checkpoint"
    if any(name.startswith((".export", "export.")) for name in names):
        return "export"
    if "last.ckpt" in names:
        done = load_checkpoint(folder / "last.ckpt")["global_step"] == STEPS
        return "after the last step" if done else "training"
    manifests = [json.loads(p.read_text()) for p in folder.glob("cache/*.json")]
    whole = any(m.get("finished") for m in manifests)
    return "before the first checkpoint" if whole else "writing the teacher cache"


def wrong_tensors(folder: Path, expected: dict[str, torch.Tensor]) -> list[str]:
    """Names whose exported values are not those of the run that was left alone."""
    found = load_file(folder / "export" / "model.safetensors")
    assert found.keys() == expected.keys()
    return [name for name in found if not torch.equal(found[name], expected[name])]


def attack(place: Path, *, kills: int, seed: int) -> dict[str, object]:
    """Figures of so many kills; `wrong` names runs that ended otherwise than the one left alone."""
    torch.set_num_threads(1)
    alone = place / "alone"
    alone.mkdir()
    before = time.process_time()
    expected = load_file(run(alone) / "model.safetensors")
    longest = time.process_time() - before
    draw, counts, wrong, ended, number = random.Random(seed), Counter(), [], 0, 0
    folder_open = False
    while sum(counts.values()) < kills or folder_open:
        folder = place / str(number)
        folder.mkdir(exist_ok=True)
        enough = sum(counts.values()) >= kills
        if kill_after(start(folder), 1e9 if enough else draw.uniform(0.0, longest)):
            _forget(folder)
            counts[interrupted(folder)] += 1
            folder_open = True
            continue
        folder_open = False
        number, ended = number + 1, ended + 1
        if not (folder / "export").exists():
            wrong.append((folder / "error.txt").read_text().strip().splitlines()[-1])
        elif names := wrong_tensors(folder, expected):
            wrong.append(f"run {number}: {len(names)} tensors differ")
    return {"kills": dict(counts), "runs": ended, "wrong": wrong, "longest": longest}


def _forget(folder: Path) -> None:
    (folder / "error.txt").unlink(missing_ok=True)


def main() -> None:
    """Prints the figures; writes them where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = attack(Path(place), kills=given.kills, seed=given.seed)
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(table(found, given), indent=1) + "\n")


def table(found: dict, given: argparse.Namespace) -> dict[str, object]:
    """The figures as a table of results."""
    total = sum(found["kills"].values())
    return {
        "title": "Kills",
        "question": "Does a killed run, started again, end with the weights of one left alone?",
        "command": f"python -m tests.faults.kills --kills {given.kills} --seed {given.seed}",
        "machine": f"{platform.machine()}, 1 core",
        "date": date.today().isoformat(),
        "columns": ["interrupted", "kills"],
        "rows": [[name, count] for name, count in sorted(found["kills"].items())],
        "notes": [
            f"{total} SIGKILLs in {found['runs']} runs (W8A8, sparsity, a teacher cache, a "
            f"checkpoint a step, {STEPS} steps, export), each started again until it had ended.",
            f"{len(found['wrong'])} runs ended otherwise than bit-equal"
            + (f": {found['wrong']}" if found["wrong"] else "."),
        ],
    }


if __name__ == "__main__":
    main()
