"""`recipe=cache_teacher` and `teacher.host=cached`, end to end on a small embedded teacher."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from compress.scripts.export import main as export
from compress.scripts.lib.launch import rank_here
from tests.scripts.small_run import small_run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A cache with one stored feature, and the report of its writing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        runs = tmp_path_factory.mktemp("runs")
        status, report = small_run(
            runs / "cache", "recipe=cache_teacher", "cache.top_k=10", "cache.features=[model.norm]",
            "cache.rows_per_shard=64", "teacher.served.model=sk-HIDDENHIDDEN",
        )  # fmt: skip
        assert status == 0 and rank_here() == 0
        yield runs, report["cache"]


def test_the_cache_keeps_its_promise_of_size(written):
    _, cache = written
    assert cache["tokens"] > 1000
    assert cache["bytes_per_token"] <= 10 * 4 + 2
    assert cache["shards"] > 1 and cache["features"] == {"model.norm": 64}


def test_what_is_written_beside_a_cache_holds_no_secret(written):
    runs, _ = written
    for name in ("config.yaml", "report.json"):
        text = (runs / "cache" / name).read_text()
        assert "HIDDEN" not in text and "***" in text
    command = json.loads((runs / "cache" / "report.json").read_text())["command"]
    assert command.startswith("python scripts/train.py ")


def test_a_run_learns_from_the_cache_and_reports_the_teachers_loss(written):
    runs, cache = written
    status, report = small_run(runs / "cached", "teacher.host=cached")
    assert status == 0, report
    assert report["quality"]["teacher"] == pytest.approx(cache["teacher_loss"])
    lines = (runs / "cached" / "metrics.jsonl").read_text()
    assert "train/logits" in lines
    (export,) = report["exports"]
    assert export["verified"]


def test_a_teacher_that_is_only_cached_has_the_bytes_of_its_weights(written):
    runs, _ = written
    size = json.loads((runs / "cached" / "report.json").read_text())["size"]
    (file,) = Path(os.environ["COMPRESS_CACHE"]).glob("teachers/*/model.safetensors")
    assert size["teacher_bytes"] == sum(4 * t.numel() for t in load_file(file).values())
    assert size["ratio"] == size["teacher_bytes"] / size["compressed_bytes"]


def test_a_finished_cache_is_found_finished(written, capsys):
    runs, cache = written
    folder = Path(cache["path"])
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    words = (
        "recipe=cache_teacher", "cache.top_k=10", "cache.features=[model.norm]",
        "cache.rows_per_shard=64",
    )  # fmt: skip
    status, again = small_run(runs / "cache", *words)
    assert status == 0 and again["cache"] == cache
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("*.safetensors")} == before


def test_other_data_is_refused(written, capsys):
    runs, cache = written
    status, _ = small_run(
        runs / "other", "teacher.host=cached", f"teacher.cache={cache['path']}", "data.seed=1"
    )
    assert status == 2
    assert "was made of something else" in capsys.readouterr().err


def test_a_feature_that_was_not_cached_is_refused_before_the_first_step(written, capsys):
    runs, _ = written
    status, _ = small_run(
        runs / "feature", "teacher.host=cached", "+callbacks@callbacks.features=features",
        "+callbacks.features.pairs={model.norm: model.layers.0}",
    )  # fmt: skip
    assert status == 2
    assert "holds no feature" in capsys.readouterr().err


def test_a_damaged_shard_is_refused_by_name(written, capsys):
    runs, cache = written
    shard = sorted(Path(cache["path"]).glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        status, _ = small_run(runs / "damaged", "teacher.host=cached", "trainer.max_steps=40")
    finally:
        shard.write_bytes(whole)
    assert status == 2
    assert shard.name in capsys.readouterr().err


def test_a_served_teacher_teaches_through_the_command_line(written):
    import torch
    from transformers import AutoTokenizer

    from compress.teachers.local import load_hf_teacher
    from tests.teachers.fake_server import Behaviour, serving

    folders = [p for p in Path(os.environ["COMPRESS_CACHE"], "teachers").iterdir() if p.is_dir()]
    folder = min(folders, key=lambda path: path.stat().st_mtime)  # other data made later ones
    model, tokenizer = load_hf_teacher(str(folder)), AutoTokenizer.from_pretrained(folder)

    class Served:
        @torch.no_grad()
        def log_probs(self, batch):
            return torch.log_softmax(model(**batch).logits, -1)

    behaviour = Behaviour(
        Served(), encode=lambda text: tokenizer.encode(text, add_special_tokens=False)
    )
    with serving(behaviour) as url:
        status, report = small_run(
            written[0] / "served", "teacher.host=served", f"teacher.served.url={url}",
            "teacher.served.model=toy", "teacher.served.top_k=8", "trainer.max_steps=3",
        )  # fmt: skip
    assert status == 0, report
    assert behaviour.asked == 3 * 4 and behaviour.most <= 8
    assert report["exports"][0]["verified"]
    # the server is gone by now, and an export has nothing to ask it
    assert export([f"run_dir={written[0] / 'served'}", "target=transformers"]) == 0


def test_a_cache_that_is_not_there_is_told_with_the_command_that_writes_it(tmp_path, capsys):
    status, _ = small_run(tmp_path / "run", "teacher.host=cached", f"teacher.cache={tmp_path}/none")
    assert status == 2
    assert "recipe=cache_teacher" in capsys.readouterr().err
    assert "RANK" not in os.environ
