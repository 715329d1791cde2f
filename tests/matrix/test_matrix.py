"""Every combination trains, resumes bit for bit, exports, and reloads equal."""

import json
import subprocess
import sys

import pytest

from tests.matrix.cases import METHODS, all_cases, combinations, sample
from tests.matrix.prove import prove

ALONE = [case for case in all_cases() if case.ranks == 1]


def test_the_matrix_holds_every_kind_every_pair_and_the_whole():
    kinds = [(method, kind) for method, known in METHODS.items() for kind in known]
    found = {frozenset(combination) for combination in combinations()}
    for one in kinds:
        assert frozenset([one]) in found
        for other in kinds:
            assert one[0] == other[0] or frozenset([one, other]) in found
        assert any(one in whole and len(whole) == len(METHODS) for whole in found)


@pytest.mark.parametrize("case", sample(3, seed=3, ranks=1), ids=lambda case: case.words)
def test_a_combination_trains_resumes_and_exports(case, tmp_path):
    prove(case, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.words)
def test_every_combination_trains_resumes_and_exports(case, tmp_path):
    prove(case, tmp_path)


def on_two_ranks(count, folder, *, timeout):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*command, "-m", "tests.matrix.ranks", str(count), "3", str(folder)],
        check=True, timeout=timeout,
    )  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    assert result["failed"] == {}, "\n".join(f"{k}\n{v}" for k, v in result["failed"].items())
    return result["cases"]


def test_combinations_on_two_ranks(tmp_path):
    assert on_two_ranks(2, tmp_path, timeout=900) == 2


@pytest.mark.nightly
def test_every_combination_on_two_ranks(tmp_path):
    assert on_two_ranks(0, tmp_path, timeout=6 * 3600) == len(ALONE)
