"""Going on with a run never becomes another training, and never spoils what a run left."""

import os
import shutil
from pathlib import Path

import pytest

from compress.errors import BadInput
from compress.scripts.lib.checks import check_paths
from compress.scripts.lib.config import compose
from compress.scripts.lib.resume import differences
from compress.scripts.lib.run_folder import choose_folder
from tests.scripts.small_run import small_run

FOREIGN = {"_target_": "mine.Watch", "every": 3}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A finished run; its teacher's cache is used by the tests below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("runs") / "kept"
        assert small_run(folder, "recipe=qat")[0] == 0
        yield folder


@pytest.fixture
def run(kept, tmp_path):
    """A copy of it, to be spoilt."""
    shutil.copytree(kept, tmp_path / "run")
    return tmp_path / "run"


def record(folder):
    return [(folder / name).read_bytes() for name in ("config.yaml", "report.json")]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.learning_rate=0.5", "training.learning_rate: 0.001 in the run, 0.5 now"),
        ("seed=7", "seed: 0 in the run, 7 now"),
        ("callbacks.qat.scheme=W8A16", "callbacks.qat.scheme: 'W8A8' in the run, 'W8A16' now"),
        ("data.max_bytes=200000", "data.max_bytes: 300000 in the run, 200000 now"),
        ("~callbacks.qat", "callbacks.qat: "),
    ],
)
def test_other_settings_are_refused_and_the_finished_run_stays(run, word, said, capsys):
    before = record(run)
    assert small_run(run, "recipe=qat", "ckpt=last", word)[0] == 2
    assert said in capsys.readouterr().err
    assert record(run) == before


def test_a_checkpoint_that_does_not_load_leaves_a_finished_run_as_it_was(run, capsys):
    before = record(run)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert small_run(run, "recipe=qat", "ckpt=last", "trainer.max_steps=8")[0] == 2
    assert "no readable checkpoint" in capsys.readouterr().err
    assert record(run) == before


def test_more_steps_are_no_other_training(run):
    status, report = small_run(run, "recipe=qat", "ckpt=last", "trainer.max_steps=8")
    assert (status, report["status"]) == (0, "finished")
    assert report["asked"]["trainer"]["max_steps"] == 8
    assert report["exports"][0]["verified"]


def test_a_finished_run_ends_at_once_when_it_is_asked_again(run):
    status, report = small_run(run, "recipe=qat", "ckpt=last")
    assert (status, report["status"]) == (0, "finished")


def test_callbacks_from_outside_may_come_and_go_and_teachers_may_move():
    began = {"callbacks": {"watch": FOREIGN}, "teacher": {"host": "local", "path": "a"}}
    asked = {"callbacks": {}, "teacher": {"host": "cached", "path": "a", "cache": "b"}}
    assert differences(began, asked) == []
    assert differences(began, {**asked, "teacher": {"path": "b"}}) == [("teacher.path", "a", "b")]


def test_a_setting_that_the_run_did_not_know_has_its_default():
    ours = {"_target_": "compress.callbacks.X", "every": 1}
    began, asked = {"callbacks": {"x": ours}}, {"callbacks": {"x": {**ours, "new": 2}}}
    assert differences(began, asked) == []
    assert differences({"callbacks": {}}, asked)  # a callback that was not there


def test_a_checkpoints_path_names_its_run(run):
    config = compose([f"ckpt={run / 'checkpoints' / 'last.ckpt'}"])
    assert choose_folder(config, "distill_qat") == (run, True)
    config.ckpt = "/no/run/here.ckpt"
    with pytest.raises(BadInput, match="lies in no run folder"):
        choose_folder(config, "distill_qat")


def test_a_checkpoint_of_one_run_does_not_go_on_in_the_folder_of_another(run, kept, capsys):
    before = record(run)
    status, _ = small_run(run, "recipe=qat", f"ckpt={kept / 'checkpoints' / 'last.ckpt'}")
    assert status == 2
    assert "holds another one" in capsys.readouterr().err
    assert record(run) == before


def test_the_newest_run_is_the_one_written_to_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("2026-02-02", "2026-01-01", "mine")):
        place = Path("runs/qat") / name / "checkpoints"
        place.mkdir(parents=True)
        os.utime(place, (1000 + (age == 1), 1000 + (age == 1)))
    assert choose_folder(compose(["ckpt=last"]), "qat")[0] == Path("runs/qat/2026-01-01")


def test_a_teachers_cache_is_not_written_into_a_training_runs_folder(run):
    words = ["recipe=cache_teacher", f"run_dir={run}"]
    with pytest.raises(BadInput, match="holds a run already"):
        check_paths(compose(words))
    (run / "config.yaml").write_text("cache: {top_k: 8}\n")
    check_paths(compose(words))
