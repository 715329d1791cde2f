"""Fuzzing by coverage: finds a fault that is there, and none in what reads files from elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="the extra `fuzz` has wheels for Linux on x86_64 alone")
ROOT = Path(__file__).resolve().parents[2]
PLANTED = """
import sys
from tests.fuzz import guided
def read(self, name, data):
    if len(data) > 3:
        raise ValueError("planted")
guided.Readers.data_file = read
sys.argv = ["guided", "data_file", "--runs", "50"]
guided.main()
"""


def run(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)


def test_a_planted_fault_is_found():
    found = run("-c", PLANTED)
    assert found.returncode != 0 and "planted" in found.stdout + found.stderr


def test_data_files_that_coverage_leads_to_are_refused():
    ended = run("-m", "tests.fuzz.guided", "data_file", "--runs", "200")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Done 200" in ended.stderr


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "runs"),
    [("data_file", 20_000), ("checkpoint", 5000), ("safetensors", 1000), ("onnx", 2000),
     ("recipe", 1000)],
)  # fmt: skip
def test_inputs_that_coverage_leads_to_are_refused(kind, runs):
    ended = run("-m", "tests.fuzz.guided", kind, "--runs", str(runs))
    assert ended.returncode == 0, ended.stderr[-3000:]
