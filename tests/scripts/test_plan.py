"""scripts/plan.py: figures from a configuration alone, and errors at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, GPT2Config, MixtralConfig, MptConfig

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


def planned(config, folder, *words):
    """The figures that the program writes for a configuration."""
    config.save_pretrained(folder / "model")
    out = folder / "plan.json"
    assert plan.main([f"model={folder / 'model'}", "gpu=H100", f"out={out}", *words]) == 0
    return json.loads(out.read_text())


def test_bert_is_planned_with_the_settings_as_they_come(tmp_path, capfd):
    found = planned(BertConfig(architectures=["BertForMaskedLM"]), tmp_path)
    assert {row["length"] for row in found["serving"]} == {512}
    assert {row["bytes"]["kv_cache"] for row in found["serving"]} == {0}
    assert found["training"]["bytes"]["activations"] > 0
    assert found["notes"] == [
        f"{key} lies beyond the 512 tokens that the model takes: planned with 512"
        for key in ("length=4096", "train_length=1024")
    ]
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert "least ms a text of 512" in said


def test_bert_is_planned_with_its_longest_texts_without_a_note(tmp_path):
    config = BertConfig(architectures=["BertForMaskedLM"])
    assert planned(config, tmp_path, "length=512", "train_length=512")["notes"] == []


def test_gpt2_is_planned_dense_and_told_why(tmp_path):
    config = GPT2Config(n_layer=2, architectures=["GPT2LMHeadModel"])
    found = planned(config, tmp_path, "length=1024")
    assert {row["scheme"] for row in found["serving"]} == {"dense"}
    conv1d, left, qat = found["notes"]
    assert conv1d.startswith("8 layers are Conv1D")
    assert left.endswith("W8A8, W4A16, FP8_DYNAMIC")
    assert qat.startswith("qat=W8A8 would be refused")
    without = planned(config, tmp_path, "length=1024", "qat=null")
    assert found["training"] == without["training"]


def test_a_mixture_of_experts_is_planned_without_training_and_told_why(tmp_path):
    config = MixtralConfig(num_hidden_layers=1, hidden_size=64, intermediate_size=128,
                           architectures=["MixtralForCausalLM"])  # fmt: skip
    found = planned(config, tmp_path)
    assert found["training"] is None
    (note,) = found["notes"]
    assert "teachers here, not students" in note
    assert note.endswith("training is not planned")


def test_scores_that_a_model_computes_itself_are_told(tmp_path):
    config = MptConfig(n_layers=1, d_model=64, n_heads=4, architectures=["MptForCausalLM"])
    (note,) = planned(config, tmp_path, "length=2048")["notes"]
    assert note.startswith("mpt writes its attention itself")


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
