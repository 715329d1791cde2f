"""scripts/benchmark.py: a real engine in its own process, wrong settings refused at once."""

import json

import pytest

from compress.scripts import benchmark
from tests.export.onnx_models import tiny_encoder
from tests.tiny import tiny_llama

QUICK = ["requests=4", "rounds=2", "warm_up=1", "prompt_tokens=4-6", "new_tokens=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(place)
    return place


def test_a_model_is_measured_beside_its_baseline(folder, tmp_path, capsys):
    out = tmp_path / "b.json"
    words = [f"model={folder}", f"baseline={folder}", *QUICK, "concurrency=[1,2]", "rates=[50]",
             "price_per_hour=2", f"out={out}"]  # fmt: skip
    assert benchmark.main(words) == 0
    found = json.loads(out.read_text())
    assert found["status"] == "finished"
    assert [run["loop"] for run in found["runs"]] == ["closed", "closed", "open"]
    for run in found["runs"]:
        for name in ("model", "baseline"):
            figures = run[name]
            latency = figures["latency_ms"]
            assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
            assert figures["first_token_ms"]["mean"] < latency["mean"]
            assert figures["peak_bytes"] > 10**8  # Python and torch alone take that
            assert figures["dollars_per_million_tokens"] > 0
        low, high = (run["ratios"]["latency"][end] for end in ("low", "high"))
        assert low <= run["ratios"]["latency"]["value"] <= high
    assert found["runs"][1]["model"]["requests"] == 8
    assert "throughput" not in found["runs"][2]["ratios"]
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "model / baseline" in capsys.readouterr().out


def test_a_damaged_model_is_told_and_the_file_says_failed(folder, tmp_path, capsys):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    out = tmp_path / "b.json"
    assert benchmark.main([f"model={tmp_path}", *QUICK, f"out={out}"]) == 2
    assert "does not load" in capsys.readouterr().err
    assert json.loads(out.read_text())["status"] == "failed"


RUNS = '{"status": "finished", "runs": [{"loop": "closed"}]}'


@pytest.mark.parametrize("before", [RUNS, "no figures that we know"])
def test_a_start_that_measures_nothing_leaves_earlier_figures_alone(before, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    out = tmp_path / "b.json"
    out.write_text(before)
    assert benchmark.main([f"model={tmp_path / 'model'}", *QUICK, f"out={out}"]) == 2
    assert f"{out} keeps the runs of before" in capsys.readouterr().err
    assert out.read_text() == before
    said = json.loads((tmp_path / "b.failed.json").read_text())
    assert (said["status"], said["runs"]) == ("failed", []) and said["error"]


def test_a_start_that_measures_nothing_replaces_one_that_measured_nothing(tmp_path):
    (tmp_path / "model").mkdir()
    out = tmp_path / "b.json"
    out.write_text('{"status": "running", "runs": []}')
    assert benchmark.main([f"model={tmp_path / 'model'}", *QUICK, f"out={out}"]) == 2
    assert json.loads(out.read_text())["status"] == "failed"
    assert not (tmp_path / "b.failed.json").exists()


def test_what_is_written_holds_no_secret(tmp_path):
    model, out = tmp_path / "sk-HIDDENHIDDEN", tmp_path / "b.json"
    model.mkdir()
    assert benchmark.main([f"model={model}", *QUICK, f"out={out}"]) == 2
    assert "HIDDEN" not in out.read_text()
    assert json.loads(out.read_text())["settings"]["new_tokens"] == [3, 3]


def test_a_benchmark_of_nothing_is_refused(capsys):
    for words in (["requests=4"], ["url="], ["engine=server"]):
        assert benchmark.main(words) == 2
        assert "model must be given: model=PATH" in capsys.readouterr().err


def test_words_of_a_server_without_one_are_refused(capsys):
    assert benchmark.main(["url=http://127.0.0.1:9", "generator=vllm"]) == 2
    said = capsys.readouterr().err
    for word in ("url=http://127.0.0.1:9", "generator=vllm"):
        assert f"{word} is of a server, and engine=transformers asks none: engine=server" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out=figures.png"], "out=figures.png: must end in .json"),
        (["rates=[1,4"], "rates=[1,4: a list, such as [a,b], is expected; a bracket"),
        (["engine=vlm"], "Did you mean 'vllm'"),
        (["engine=vllm", "python=/no/python"], "there is no /no/python: make test-serving"),
        (["engine=vllm", "python=README.md"], "README.md is no program: make test-serving"),
        (["prompt_tokens=many"], "a range such as 32-128"),
        (["concurrency=[0]"], "whole numbers from 1 on"),
        (["rates=[fast]"], "a list of numbers"),
        (["price_per_hour=dear"], "a number of dollars"),
        (["requests=0"], "must be at least 1"),
        (["options=fast"], "options=fast: expected {name: value}"),
        (["concurrency=[]"], "nothing to run"),
        (["lengths=/no/file"], "there is no such file"),
    ],
)
def test_wrong_settings_are_refused_at_once(words, said, folder, capsys):
    assert benchmark.main([f"model={folder}", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_engine_that_is_not_installed_comes_with_its_command(folder, monkeypatch, capsys):
    from compress.scripts.lib import benchmark_settings

    monkeypatch.setitem(benchmark_settings.INSTALL, "tvm", ("no_tvm", "pip install apache-tvm"))
    assert benchmark.main([f"model={folder}", "engine=tvm"]) == 2
    assert "engine=tvm needs no_tvm, which is not installed: pip install apache-tvm" in (
        capsys.readouterr().err
    )


def test_a_decoder_with_a_cache_is_not_compared_with_one_without():
    from types import SimpleNamespace

    from compress.errors import BadInput
    from compress.scripts.lib.benchmark_run import _same_kind

    def arm(cached, generates=True):
        return SimpleNamespace(facts={"cached": cached, "generates": generates})

    with pytest.raises(BadInput, match="model has a key-value cache and baseline has none"):
        _same_kind({"model": arm(True), "baseline": arm(False)})
    _same_kind({"model": arm(True), "baseline": arm(True)})
    _same_kind({"model": arm(True, generates=False), "baseline": arm(False, generates=False)})
    with pytest.raises(BadInput, match="model writes text, baseline answers with one pass"):
        _same_kind({"model": arm(False), "baseline": arm(False, generates=False)})


@pytest.mark.parametrize("engine", ["transformers", "eager"])
def test_an_encoder_is_measured_by_its_pass_and_writes_nothing(engine, tmp_path):
    tiny_encoder().save_pretrained(tmp_path / "model")
    out = tmp_path / "b.json"
    words = [f"model={tmp_path / 'model'}", f"engine={engine}", *QUICK, f"out={out}"]
    assert benchmark.main(words) == 0
    found = json.loads(out.read_text())
    assert found["arms"]["model"]["generates"] is False
    assert found["runs"][0]["model"]["per_token_ms"] == {}


def test_a_sequence_beyond_the_last_position_is_refused(folder, tmp_path, capsys):
    words = ["requests=2", "prompt_tokens=60", "new_tokens=5", f"out={tmp_path / 'b.json'}"]
    assert benchmark.main([f"model={folder}", f"baseline={folder}", *words]) == 2
    said = capsys.readouterr().err
    assert "65 tokens" in said and "model has 64, baseline has 64 positions" in said


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model.onnx", "it holds *.onnx: engine=onnxruntime runs it"),
        ("model.pt2", "it holds *.pt2: engine=inductor runs it"),
        ("README.md", "it holds no *.safetensors"),
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "server"])
def test_vllm_is_not_started_on_what_is_no_checkpoint(engine, file, said, tmp_path, capsys):
    (tmp_path / file).write_bytes(b"")
    words = [f"engine={engine}", f"model={tmp_path}", f"python={tmp_path / file}"]
    assert benchmark.main([*words, f"out={tmp_path / 'b.json'}"]) == 2
    assert f"engine={engine} reads a checkpoint folder; {said}" in capsys.readouterr().err
