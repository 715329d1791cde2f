"""scripts/plan.py: figures from a configuration alone, and errors at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compress.scripts import plan
from tests.tiny import tiny_llama

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    tiny_llama().config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_plan_is_printed_and_written(folder, tmp_path, capsys):
    out = tmp_path / "plan.json"
    words = [f"model={folder}", f"teacher={folder}", "gpu=H100,L4", "schemes=[dense,W8A8]",
             "batch=[2]", "length=64", "train_length=32", f"out={out}"]  # fmt: skip
    assert plan.main(words) == 0
    written = json.loads(out.read_text())
    assert [row["scheme"] for row in written["serving"]] == ["dense", "W8A8"]
    dense, int8 = (row["bytes"]["weights"] for row in written["serving"])
    assert dense > int8
    assert written["serving"][0]["places"]["H100"]["tensor_parallel"] == 1
    assert written["training"]["bytes"]["teacher"] > 0
    said = capsys.readouterr().out
    assert "LlamaForCausalLM" in said
    assert written["accelerators_as_of"] in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpu=H100"], "model must be given"),
        (["model=/no/such/place"], "there is no such file or folder"),
        (["model=a/b", "bacth=[1]"], "Did you mean 'batch'"),
        (["model=a/b", "length=long"], "a number is expected"),
    ],
)
def test_wrong_settings_are_refused(words, said, capsys):
    assert plan.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpu=H1000"], "Did you mean 'h100'"),
        (["schemes=[W8A9]"], "Did you mean 'W8A8'"),
        (["batch=[many]"], "a whole number is expected"),
    ],
)
def test_unknown_words_are_refused(words, said, folder, capsys):
    assert plan.main([f"model={folder}", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("script", ["plan", "evaluate", "benchmark"])
def test_help_and_errors_load_nothing_heavy(script):
    code = (
        f"import sys; from compress.scripts.{script} import main; "
        "codes = [main(['--help']), main(['model=/no/such/place'])]; "
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules); "
        "sys.exit(f'{codes} {heavy}' if heavy or codes != [0, 2] else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
