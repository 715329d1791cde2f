"""Claims about `task=embedding`: trained, exported, read again and compared, by the programs."""

import json

import pytest

from compress.scripts.evaluate import main as evaluate
from compress.scripts.export import main as export
from compress.scripts.train import main as train
from tests.data.texts import write_lines

WORDS = (
    "recipe=distill_embedding", "data.sequence_length=32", "data.vocab_size=512",
    "teacher.layers=2", "teacher.hidden=64", "teacher.max_steps=20", "student.layers=1",
    "trainer.max_steps=30", "trainer.batch_size=8", "trainer.validate_every=15",
    "trainer.validation_batches=8", "training.warmup_steps=2", "training.learning_rate=3e-3",
    "logger=none", "verbose=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("embedding") / "run"
    assert train([*WORDS, f"run_dir={path}"]) == 0
    return path, json.loads((path / "report.json").read_text())


def test_a_student_comes_nearer_to_its_teacher_and_is_exported_as_trained(run):
    _, report = run
    quality = report["quality"]
    assert (quality["metric"], quality["unit"]) == ("distance", "1 - cosine")
    assert quality["teacher"] == pytest.approx(0, abs=1e-3)
    assert quality["compressed"] < 0.8 * quality["start"]
    assert quality["agreement"]["cosine"] == pytest.approx(1 - quality["compressed"], abs=1e-3)
    assert 0 < quality["agreement"]["spearman"] <= 1
    (exported,) = report["exports"]
    assert exported["verified"] and exported["codes_equal"]
    assert exported["max_abs_logit_diff"] <= 1e-5


def test_the_export_embeds_as_the_run_does_and_can_be_written_again(run, tmp_path):
    path, _ = run
    out = tmp_path / "evaluated.json"
    words = [f"model={path}/export/transformers", f"baseline={path}", f"out={out}"]
    assert evaluate(words) == 0
    found = json.loads(out.read_text())["measures"]["embedding"]["against_baseline"]
    assert found["cosine"]["value"] == pytest.approx(1, abs=1e-4)
    assert found["spearman"] == pytest.approx(1, abs=1e-3)
    assert export([f"run_dir={path}", "target=transformers", f"path={tmp_path / 'again'}"]) == 0


def test_pairs_of_texts_need_a_teacher_that_is_given(tmp_path, capsys):
    rows = [{"query": f"who ate apple {i}", "passage": f"tree {i}"} for i in range(80)]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    words = ["recipe=distill_embedding", "data=sentences", f"data.path={path}", "logger=none",
             "data.text_columns=[query,passage]", "data.vocab_size=300", "verbose=false",
             f"run_dir={tmp_path / 'run'}"]  # fmt: skip
    assert train(words) == 2
    assert "no labels" in (said := capsys.readouterr().err) and "teacher=hf" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare=true"], "compare=true with task=embedding"),
        (["teacher.host=cached"], "use teacher.host=local"),
        (["teacher=none"], "teacher=none"),
        (["+callbacks.logits={_target_: compress.callbacks.LogitsDistillation}"], "~callbacks."),
    ],
)
def test_what_embeddings_cannot_have_is_refused_at_once(tmp_path, capsys, words, said):
    status = train(["recipe=distill_embedding", f"run_dir={tmp_path / 'run'}", *words])
    assert status == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
