"""Two CPU ranks (gloo): one student, unequal routes, a lost rank, a sharded teacher."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.scripts.lib.run_folder import read_json
from tests.scripts.small_run import SMALL

TWO = ("trainer=ddp", "trainer.devices=2", "verbose=false")
SHARDED = ("trainer=fsdp2", "trainer.accelerator=cpu")


def quiet_environment(**changes):
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "COMPRESS_RUN_DIR")
    kept = {k: v for k, v in os.environ.items() if k not in launcher}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


def test_two_ranks_end_with_one_student_however_their_rows_are_routed():
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "tests.two_ranks_child",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=quiet_environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.findall(r"rank (\d) student (\w+) calls (\d+)", done.stdout)
    assert sorted(rank for rank, _, _ in found) == ["0", "1"]
    assert len({student for _, student, _ in found}) == 1, "the ranks' students differ"
    made = re.findall(r"scales (\d+) (\w+) masks (\d+) (\w+)", done.stdout)
    assert len(made) == 2 and made[0] == made[1], "scales or masks differ"
    assert int(made[0][0]) > 0 and int(made[0][2]) > 0, made
    # a teacher that is sharded would hang where ranks ask unequally often
    assert len({calls for _, _, calls in found}) == 1, found


def start(run_dir: Path, cache: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "compress.scripts.train", *SMALL, *TWO, f"run_dir={run_dir}"]
    return subprocess.Popen(
        [*command, *words], env=quiet_environment(COMPRESS_CACHE=str(cache)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def process_of_rank(rank: int, run_dir: Path) -> int:
    """The process that runs this rank of that run."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            told = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"run_dir={run_dir}".encode() in words and f"RANK={rank}".encode() in told:
            return int(folder.name)
    raise AssertionError(f"rank {rank} does not run")


def wait_for(path: Path, running: subprocess.Popen) -> None:
    while not path.exists():
        assert running.poll() is None, running.stderr.read()[-3000:]
        time.sleep(0.2)


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the rank's process in /proc")
@pytest.mark.parametrize("how", [(), SHARDED], ids=["ddp", "fsdp2"])
def test_a_lost_rank_ends_the_run_with_a_message_and_a_checkpoint_to_go_on_from(tmp_path, how):
    run_dir, cache = tmp_path / "run", tmp_path / "cache"
    running = start(run_dir, cache, "trainer.max_steps=100000", "data.max_bytes=4000000", *how)
    wait_for(run_dir / "checkpoints" / "last.ckpt", running)
    while not any_step_told(run_dir):
        time.sleep(0.2)
    os.kill(process_of_rank(1, run_dir), signal.SIGKILL)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 1
    assert re.search(r"rank 1 of 2 \(process \d+\) ended with signal 9", said)
    assert f"run_dir={run_dir} ckpt=last" in said
    report = read_json(run_dir / "report.json")
    assert report["status"] == "failed" and "rank 1 of 2" in report["error"]

    steps = read_steps(run_dir)
    words = (f"trainer.max_steps={max(steps) + 40}", "data.max_bytes=4000000", "ckpt=last", *how)
    resumed = start(run_dir, cache, *words)
    _, said = resumed.communicate(timeout=900)
    assert resumed.returncode == 0, said[-3000:]
    report = read_json(run_dir / "report.json")
    assert report["status"] == "finished"
    (export,) = report["exports"]
    assert export["verified"]
    after = read_steps(run_dir)
    assert after == sorted(set(after)), "a step was reported twice"


def any_step_told(run_dir: Path) -> bool:
    """Whether metrics.jsonl tells a step of the student; its last line may be half written."""
    told = (run_dir / "metrics.jsonl").read_text().splitlines()[:-1]
    return any('"phase": "train"' in line and '"train/loss"' in line for line in told)


def read_steps(run_dir: Path) -> list[int]:
    """The training steps of the student that metrics.jsonl tells, in its order."""
    import json

    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [m["step"] for m in lines if m["phase"] == "train" and "train/loss" in m]


@pytest.mark.nightly
def test_a_teacher_sharded_over_the_ranks_teaches_through_the_command_line(tmp_path):
    pytest.importorskip("deepspeed")
    run_dir = tmp_path / "run"
    cache = tmp_path / "cache"
    from compress.teachers.deepspeed_build import extensions_folder

    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions_folder())  # compiled once a machine
    running = start(run_dir, cache, "teacher.host=deepspeed")
    _, said = running.communicate(timeout=900)
    assert running.returncode == 0, said[-3000:]
    report = read_json(run_dir / "report.json")
    assert report["status"] == "finished"
    assert report["quality"]["teacher"] > 0 and report["exports"][0]["verified"]
    assert (run_dir / "metrics.jsonl").read_text().count("train/logits") >= 1


@pytest.mark.nightly
def test_what_is_wrong_is_said_once_by_two_ranks(tmp_path):
    running = start(tmp_path / "run", tmp_path / "cache", "callbacks.qat.group_size=7")
    _, said = running.communicate(timeout=300)
    assert running.returncode == 2
    assert said.count("group_size") == 1 or said.count("BadInput") + said.count("Unsupported") == 1
