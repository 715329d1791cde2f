"""scripts/evaluate.py: dense, compressed and fake-quantised models, measured alike."""

import json
import os
from pathlib import Path

import pytest

from compress.export.write import export
from compress.quantize.prepare import prepare
from compress.scripts import evaluate, train
from compress.scripts.lib.evaluate_run import read_questions

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
    path.write_text('{"prompt": "a", "choices": ["b", "c"], "answer": 1}\n{"prompt": 1}\nno\n')
    with pytest.raises(BadInput, match=r"2 lines.*line 2: KeyError.*line 3"):
        read_questions(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "model must be given"),
        (["model=/no/such/place"], "there is no such file or folder"),
        (["model=a/b", "part=rest"], "use train, validation or test"),
        (["model=a/b", "basline=c/d"], "Did you mean 'baseline'"),
        (["model=a/b", "questions=/no/file"], "there is no such file"),
    ],
)
def test_wrong_settings_are_refused(words, said, capsys):
    assert evaluate.main(words or ["seed=0"]) == 2
    assert said in capsys.readouterr().err


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
