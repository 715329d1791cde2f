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
        (["model=a/b", "length=long"], "a number (such as 4096) is expected"),
        (["model=a/b", "length=2.5"], "a whole number (such as 4096) is expected"),
        (["model=a/b", "length=null"], "a value is expected, as 4096"),
        (["model=a/b", "batch=[many]"], "a number (such as 1) is expected"),
        (
            ["model=a/b", "batch=[1,16"],
            "batch=[1,16: a list, such as [1,16], is expected; a bracket",
        ),
        (["model=a/b", "batch=[1,1.5]"], "a whole number (such as 1) is expected"),
        (["model=a/b", "usable=.nan"], "a finite number is expected"),
        (["model=a/b", "group_size=many"], "a whole number or null is expected"),
        (["model=a/b", "train=perhaps"], "true or false is expected"),
        (["model=[a]", "length=8"], "model=[a]: there is no such file or folder"),
        (
            ["model=a/b", "usable=2", "batch=[0]", "train_batch=-1", "kv_bits=3", "precision=bf17"],
            "usable=2: must be more than 0 and at most 1",
        ),
        (["model=a/b", "usable=2", "kv_bits=3"], "kv_bits=3 is unknown. There are: 8, 16"),
        (["model=a/b", "precision=bf16-mix"], "Did you mean 'bf16-mixed'"),
    ],
)
def test_wrong_settings_are_refused(words, said, capsys):
    assert plan.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpu=H1000"], "Did you mean 'H100'"),
        (["gpu=[H100,L5]"], "L5: Did you mean 'L4'"),
        (["schemes=[W8A9]"], "Did you mean 'W8A8'"),
        (["qat=W8A9"], "Did you mean 'W8A8'"),
    ],
)
def test_unknown_words_are_refused(words, said, folder, capsys):
    assert plan.main([f"model={folder}", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_length_beyond_the_model_is_planned_and_told(folder, tmp_path, capsys):
    out = tmp_path / "plan.json"
    words = [f"model={folder}", "gpu=H100", "schemes=[dense]", "batch=[1]", "length=5000",
             "train=false", f"out={out}"]  # fmt: skip
    assert plan.main(words) == 0
    (note,) = json.loads(out.read_text())["notes"]
    assert note.startswith("length=5000")
    assert note in " ".join(capsys.readouterr().out.split())


def test_training_that_fits_nowhere_says_what_is_too_large(folder, capsys):
    words = [f"model={folder}", "gpu=L4", "schemes=[dense]", "batch=[1]", "length=64",
             "train_batch=100000", "train_length=1024"]  # fmt: skip
    assert plan.main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "each device keeps its activations whole" in said
    assert "checkpointing=true" in said


def test_settings_of_null_are_named_where_they_switch_off(folder, tmp_path):
    out = tmp_path / "plan.json"
    words = [f"model={folder}", "gpu=H100", "schemes=[W4A16]", "group_size=32", "batch=[1]",
             "length=64", "train_length=32", "qat=null", f"out={out}"]  # fmt: skip
    assert plan.main(words) == 0
    assert json.loads(out.read_text())["settings"]["group_size"] == 32


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
