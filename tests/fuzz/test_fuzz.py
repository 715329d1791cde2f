"""Broken inputs are refused by an error of ours: no traceback of a library's depths, no hang."""

import pytest

from tests.fuzz.attack import attack


def surprises(rows):
    return [trace for row in rows for trace in row["others"].values()]


def test_some_broken_inputs_of_every_kind_are_refused():
    rows = attack(80, seed=1)
    assert surprises(rows) == []
    assert sum(row["refused"] for row in rows) > 40


@pytest.mark.nightly
def test_ten_thousand_broken_inputs_are_refused():
    rows = attack(10_000, seed=0)
    assert surprises(rows) == []
    assert all(row["memory_grown_mb"] < 1024 for row in rows)
