"""Every combination trains, resumes bit for bit, exports, and reloads equal."""

import subprocess

import pytest

from tests.matrix import sweep
from tests.matrix.cases import METHODS, all_cases, combinations, sample
from tests.matrix.prove import prove
from tests.matrix.ranks import prove_on_ranks
from tests.matrix.sweep import AT_ONCE

ALONE = [case for case in all_cases() if case.ranks == 1]
ON_TWO = [case for case in all_cases() if case.ranks == 2]


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


def test_combinations_on_two_ranks(tmp_path):
    failed = prove_on_ranks(sample(2, seed=3, ranks=2), tmp_path, timeout=900)
    assert failed == {}, "\n".join(f"{words}\n{why}" for words, why in failed.items())


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(0, len(ON_TWO), AT_ONCE[2]))
def test_every_combination_on_two_ranks(first, tmp_path):
    failed = prove_on_ranks(ON_TWO[first : first + AT_ONCE[2]], tmp_path, timeout=3600)
    assert failed == {}, "\n".join(f"{words}\n{why}" for words, why in failed.items())


def test_a_rank_that_dies_leaves_none_of_its_cases_proven(monkeypatch):
    cases = sample(3, seed=5, ranks=2)

    def die(*args, **kwargs):
        raise subprocess.CalledProcessError(1, "torchrun")

    monkeypatch.setattr(sweep, "prove_on_ranks", die)
    assert set(sweep.outcomes(cases)) == {case.words for case in cases}
