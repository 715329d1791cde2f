"""What only one rank meets, both act on alike; a last batch of one row is a batch."""

import re
import subprocess
import sys

import pytest

from tests.test_two_ranks import quiet_environment


@pytest.fixture(scope="module")
def said():
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "tests.faults.two_ranks_child",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=quiet_environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return re.findall(r"(\S+) rank (\d) faults (\d) weights (\w+)", done.stdout)


@pytest.mark.parametrize(
    "case, faults", [("skip", "1"), ("rollback", "1"), ("one-row", "0"), ("stop", "1")]
)
def test_both_ranks_act_alike(said, case, faults):
    found = [(rank, count, weights) for name, rank, count, weights in said if name == case]
    assert sorted(rank for rank, _, _ in found) == ["0", "1"]
    assert {count for _, count, _ in found} == {faults}
    assert len({weights for _, _, weights in found}) == 1
