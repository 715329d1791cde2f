"""Broken inputs are refused by an error of ours: no traceback of a library's depths, no hang."""

import random

import pytest

from tests.fuzz.attack import attack
from tests.fuzz.settings import Rehearsals, cases


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


def unexpected(chosen, folder, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(folder / "kept"))
    rehearsals = Rehearsals(folder)
    return {case: trace for case in chosen if (trace := rehearsals.surprise(*case))}


def test_settings_given_what_they_can_not_take_are_refused(tmp_path, monkeypatch):
    chosen = random.Random(0).sample(cases(), 20)
    assert unexpected(chosen, tmp_path, monkeypatch) == {}


@pytest.mark.nightly
def test_every_setting_given_everything_bad_is_refused(tmp_path, monkeypatch):
    found = cases()
    assert len({key for _, key, _ in found}) > 150
    assert unexpected(found, tmp_path, monkeypatch) == {}
