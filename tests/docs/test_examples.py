"""Claims about the documents' programs: each runs as it stands, in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SAID = {
    "library.py": "W4A16",
    "own_lightning_module.py": "0.5",
    "own_callback.py": "train/l1",
    "own_target.py": "serves 8-bit weights alone",
    "hf_trainer.py": "'verified': True",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs_and_says_what_it_promises(path, tmp_path):
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path / "out")], cwd=tmp_path, capture_output=True,
        text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert SAID[path.name] in done.stdout
