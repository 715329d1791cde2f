"""scripts/evaluate.py: dense, compressed and fake-quantised models, measured alike."""

import json
import os
import shutil
from pathlib import Path

import pytest

from compress.export.write import export
from compress.quantize.prepare import prepare
from compress.scripts import evaluate, train
from compress.scripts.lib.evaluate_run import read_questions
from tests.export.onnx_models import tiny_bert

REAL = os.environ.get("COMPRESS_TEST_DATA")
DATA = ["data.sequence_length=64", "data.vocab_size=300", "data.max_bytes=200000"]
SMALL = ["batch_size=4", "max_batches=2", "resamples=100"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run that ends between two checkpoints; every test measures what it left."""
    place = tmp_path_factory.mktemp("run") / "run"
    words = ["recipe=distill_qat", f"run_dir={place}", "logger=none", "verbose=false",
             "teacher.layers=2", "teacher.hidden=64", "teacher.max_steps=3", "student.layers=1",
             "trainer.max_steps=3", "trainer.batch_size=4", "trainer.validation_batches=2",
             *DATA]  # fmt: skip
    assert train.main(words) == 0
    return place


def test_a_run_its_export_and_its_report_agree(run_folder, tmp_path):
    out = tmp_path / "e.json"
    words = [f"model={run_folder}", f"baseline={run_folder}/export/vllm", f"out={out}", *SMALL]
    assert evaluate.main(words) == 0
    found = json.loads(out.read_text())
    assert found["models"]["model"]["kind"] == "fake_quantized"
    assert found["models"]["baseline"]["kind"] == "compressed"
    against = found["measures"]["language"]["against_baseline"]
    assert against["token_agreement"]["value"] == 1.0
    assert against["kl"]["value"] == pytest.approx(0.0, abs=1e-7)
    loss = found["measures"]["language"]["model"]["loss"]
    assert loss["low"] <= loss["value"] <= loss["high"]
    reported = json.loads((run_folder / "report.json").read_text())["quality"]["compressed"]
    assert loss["value"] == pytest.approx(reported, rel=1e-5)


def source_and_loss(tmp_path, *words):
    out = tmp_path / "e.json"
    assert evaluate.main([*words, f"out={out}", *SMALL]) == 0
    found = json.loads(out.read_text())
    return found["data"], found["measures"]["language"]["model"]


def test_a_word_of_the_data_changes_a_runs_own_and_leaves_the_rest(run_folder, tmp_path):
    own = source_and_loss(tmp_path, f"model={run_folder}")
    assert source_and_loss(tmp_path, f"model={run_folder}", DATA[0]) == own  # as the run says it
    data, loss = source_and_loss(tmp_path, f"model={run_folder}", "data.sequence_length=32")
    assert data == own[0]
    assert loss["tokens"] == 4 * 2 * 31  # sequences, batches, tokens with one before them


def test_a_runs_own_data_takes_words_that_the_default_data_lacks(tmp_path):
    from omegaconf import OmegaConf

    from compress.scripts.lib.evaluate_data import changed

    config = OmegaConf.create({"data": {"_target_": "compress.data.hub", "max_rows": 5}, "seed": 1})
    found = changed(config, ["+data.max_rows=7"])
    assert found == {"data": {"_target_": "compress.data.hub", "max_rows": 7}, "seed": 1}
    assert config.data.max_rows == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data.sequence_lenght=32", "Did you mean 'sequence_length'"),
        ("data.sequence_length=[32", "data.sequence_length=[32"),
        ("~data.max_bytes", "are changed, not taken out"),
        ("data.sequence_length=long", "data.sequence_length='long': a whole number is expected"),
        ("data.sequence_length=600 data.validation_share=0.2", "600: data.sequence_length=512"),
    ],
)
def test_words_that_a_runs_own_data_does_not_take_are_refused(words, said, run_folder, capsys):
    assert evaluate.main([f"model={run_folder}", *words.split(), *SMALL]) == 2
    assert said in capsys.readouterr().err


def test_each_run_is_restored_from_its_own_checkpoint(run_folder, tmp_path, monkeypatch, capsys):
    from compress.errors import BadInput
    from compress.scripts.lib import evaluate_run

    asked, honest = [], evaluate_run.restore_student

    def restore(path, *, checkpoint, **trust):
        asked.append(checkpoint)
        if len(asked) == 2:
            raise BadInput("both are known")
        return honest(path, checkpoint=checkpoint, **trust)

    monkeypatch.setattr(evaluate_run, "restore_student", restore)
    other = shutil.copy(run_folder / "checkpoints" / "last.ckpt", tmp_path / "other.ckpt")
    words = [f"model={run_folder}", f"baseline={run_folder}"]
    assert evaluate.main([*words, f"checkpoint={other}"]) == 2
    assert asked == [str(other), "last"]
    asked.clear()
    assert evaluate.main([*words, f"baseline_checkpoint={other}"]) == 2
    assert asked == ["last", str(other)]
    assert "both are known" in capsys.readouterr().err


def test_a_checkpoint_of_what_has_none_or_of_another_run_is_refused(run_folder, tmp_path, capsys):
    last = run_folder / "checkpoints" / "last.ckpt"
    export = f"{run_folder}/export/vllm"
    words = [f"model={export}", f"checkpoint={last}", f"baseline_checkpoint={last}"]
    assert evaluate.main(words) == 2
    said = capsys.readouterr().err
    assert f"checkpoint={last}: model={export} is no run folder" in said
    assert f"baseline_checkpoint={last}: there is no baseline=" in said
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    assert evaluate.main([f"model={tmp_path}", f"checkpoint={last}"]) == 2
    assert f"is of the run {run_folder}, and model={tmp_path} is another" in capsys.readouterr().err


def test_questions_are_scored(run_folder, tmp_path):
    questions, out = tmp_path / "q.jsonl", tmp_path / "e.json"
    items = [{"prompt": "import ", "choices": ["os", "zzzzqqq"], "answer": 0}] * 3
    questions.write_text("\n".join(map(json.dumps, items)))
    words = [f"model={run_folder}", f"questions={questions}", f"out={out}", *SMALL]
    assert evaluate.main(words) == 0
    found = json.loads(out.read_text())["measures"]["questions"]["model"]
    assert found["examples"] == 3
    assert found["accuracy"]["value"] in (0.0, 1.0)


def test_lines_that_are_no_questions_are_named(tmp_path):
    from compress.errors import BadInput

    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"prompt": "a", "choices": ["b", "c"], "answer": 1}\n{"prompt": 1}\nno\n'
        '{"prompt": "a", "choices": ["b", ""], "answer": 1}\n'
    )
    with pytest.raises(BadInput, match=r"3 lines.*line 2: KeyError.*line 3.*line 4.*is empty"):
        read_questions(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "model must be given"),
        (["model=/no/such/place"], "there is no such file or folder"),
        (["model=a/b", "part=rest"], "There are: train, validation, test"),
        (["model=a/b", "basline=c/d"], "Did you mean 'baseline'"),
        (["model=a/b", "questions=/no/file"], "there is no such file"),
        (["model=a/b", "questions=/tmp"], "this is a folder"),
        (["model=a/b", "out=/tmp"], "this is a folder"),
        (["model=~/no/such/place"], "/no/such/place: there is no such file or folder"),
        (["model=a/b", "batch_size=0"], "batch_size=0: must be at least 1"),
        (["model=a/b", "max_batches=0"], "max_batches=0: must be at least 1"),
        (["model=a/b", "level=1"], "level=1: must be more than 0 and less than 1"),
        (["model=a/b", "resamples=0", "seed=-1"], "resamples=0: must be at least 1\nseed=-1"),
        (["model=a/b", "task=languages"], "task=languages is unknown"),
        (["model=a/b", "dtype=bfloat"], "Did you mean 'bfloat16'"),
        (["model=a/b", "device=tpu"], "There are: cpu, cuda"),
        (["model=a/b", "device=cuda:99"], "GPUs here; use device=cpu"),
    ],
)
def test_wrong_settings_are_refused(words, said, capsys):
    assert evaluate.main(words or ["seed=0"]) == 2
    assert said in capsys.readouterr().err


def copied(run_folder, place, *, without=()):
    target = shutil.copytree(run_folder / "export" / "vllm", place)
    for pattern in without:
        for file in target.glob(pattern):
            file.unlink()
    return target


def test_a_checkpoint_without_its_tokenizer_is_not_measured_on_anothers(
    run_folder, tmp_path, capsys
):
    bare = copied(run_folder, tmp_path / "bare", without=["tokenizer*"])
    assert evaluate.main([f"model={bare}", *SMALL]) == 2
    assert "has no tokenizer beside it" in capsys.readouterr().err


def test_models_whose_tokenizers_differ_are_not_compared(run_folder, tmp_path, capsys):
    other = copied(run_folder, tmp_path / "other")
    file = other / "tokenizer.json"
    read = json.loads(file.read_text())
    tokens = read["model"]["vocab"]
    first, second = list(tokens)[:2]
    tokens[first], tokens[second] = tokens[second], tokens[first]
    file.write_text(json.dumps(read))
    assert evaluate.main([f"model={run_folder}/export/vllm", f"baseline={other}", *SMALL]) == 2
    assert "tokenizers of model and baseline differ: 2 of 300" in capsys.readouterr().err


def test_models_of_two_tasks_are_not_compared(run_folder, tmp_path, capsys):
    tiny_bert().save_pretrained(tmp_path / "bert")
    words = [f"model={run_folder}/export/vllm", f"baseline={tmp_path}/bert", *SMALL]
    assert evaluate.main(words) == 2
    assert "only models of one task are measured together" in capsys.readouterr().err
    assert evaluate.main([*words[:1], "task=classification", *SMALL]) == 2
    assert "and task=classification: only models of one task" in capsys.readouterr().err


def test_rows_that_a_model_cannot_take_are_refused(run_folder, capsys):
    words = [f"model={run_folder}/export/vllm", *SMALL, "data.validation_share=0.1"]
    assert evaluate.main([*words, "data.sequence_length=600"]) == 2
    assert "and the rows have 600: data.sequence_length=512" in capsys.readouterr().err


def test_weights_that_do_not_fit_the_configuration_are_refused(run_folder, tmp_path, capsys):
    wrong = copied(run_folder, tmp_path / "wrong")
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))
    assert evaluate.main([f"model={wrong}", *SMALL]) == 2
    assert "tensors have other shapes than its config.json says" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has no data, teacher"),
        ("[1, 2]", "it has no data, teacher"),
        ("a: [", "is damaged"),
        ("data: {}\ntrainer: 3", "it has no teacher, student, trainer"),
    ],
)
def test_a_damaged_configuration_of_a_run_is_told(run_folder, tmp_path, text, said, capsys):
    broken = tmp_path / "run"
    shutil.copytree(run_folder, broken)
    (broken / "config.yaml").write_text(text)
    assert evaluate.main([f"model={broken}", *SMALL]) == 2
    assert said in capsys.readouterr().err


def test_a_run_is_restored_without_its_libraries_chatter(run_folder, capfd):
    assert evaluate.main([f"model={run_folder}", *SMALL]) == 0
    assert capfd.readouterr().err == ""


def test_the_harness_is_named_where_it_is_missing(monkeypatch, capsys):
    import importlib.util

    honest = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "lm_eval" else honest(n, *a)
    )
    assert evaluate.main(["model=a/b", "tasks=[arc_easy]"]) == 2
    assert "pip install 'lm-eval[hf]'" in capsys.readouterr().err


@pytest.mark.skipif(not REAL, reason="COMPRESS_TEST_DATA is not set")
def test_int8_keeps_a_real_model(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = Path(REAL) / "stories260k"
    model = AutoModelForCausalLM.from_pretrained(base)
    prepare(model, scheme="W8A8")
    tokenizer = AutoTokenizer.from_pretrained(base)
    folder = export(
        model, target="transformers", path=tmp_path / "w8a8", tokenizer=tokenizer, dtype="float32"
    ).path
    out = tmp_path / "e.json"
    text = Path(REAL) / "text" / "tinystories_lower_valid.txt"
    words = [f"model={folder}", f"baseline={base}", "data=text", f"data.path={text}",
             f"out={out}", *SMALL]  # fmt: skip
    assert evaluate.main(words) == 0
    against = json.loads(out.read_text())["measures"]["language"]["against_baseline"]
    assert against["kept"]["value"] > 0.98
    assert against["token_agreement"]["value"] > 0.9


def test_task_files_are_named_by_their_task_line(tmp_path):
    from compress.scripts.lib.harness import task_names

    file = tmp_path / "mine.yaml"
    file.write_text("dataset_path: json\ntask: my_task\n")
    assert task_names(["arc_easy", str(file)]) == (["arc_easy", "my_task"], [str(tmp_path)])


def test_task_files_that_are_missing_or_name_no_task_are_all_listed(tmp_path):
    from compress.errors import BadInput
    from compress.scripts.lib.harness import task_names

    (tmp_path / "empty.yaml").write_text("a: 1\n")
    words = [str(tmp_path / "empty.yaml"), str(tmp_path / "none.yaml")]
    with pytest.raises(BadInput, match=r"no line `task:`; .*none\.yaml: no such file"):
        task_names(words)
