"""scripts/benchmark.py: a real engine in its own process; servers down, refusing, stalling."""

import http.server
import json
import threading
import time
from contextlib import contextmanager

import pytest

from compress.scripts import benchmark
from compress.scripts.lib.benchmark_server import served_model
from compress.scripts.lib.benchmark_settings import checked
from compress.scripts.lib.load_generators import (
    ServerFailed,
    guidellm_command,
    guidellm_figures,
    vllm_command,
    vllm_figures,
)
from compress.scripts.lib.settings import read_settings
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["engine=vlm"], "Did you mean 'vllm'"),
        (["engine=vllm", "python=/no/python"], "make test-serving"),
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


@contextmanager
def server(answer):
    """A server on the loopback that does what `answer(handler)` does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def reply(text, status=200):
    def answer(handler):
        handler.send_response(status)
        handler.end_headers()
        handler.wfile.write(text.encode())

    return answer


def test_a_server_says_what_it_serves():
    with server(reply('{"data": [{"id": "mine"}]}')) as url:
        assert served_model(url) == "mine"


def test_servers_that_are_down_refuse_or_are_something_else_are_told_apart():
    with pytest.raises(ServerFailed, match="is down"):
        served_model("http://127.0.0.1:9")
    with server(reply("busy", 503)) as url, pytest.raises(ServerFailed, match="HTTP 503"):
        served_model(url)
    with server(reply("<html>")) as url, pytest.raises(ServerFailed, match="no OpenAI-compatible"):
        served_model(url)


def test_a_stalling_server_is_given_up(monkeypatch):
    from compress.scripts.lib import benchmark_server

    monkeypatch.setattr(benchmark_server, "ANSWER_SECONDS", 0.3)
    with server(lambda _: time.sleep(1)) as url, pytest.raises(ServerFailed, match="stalls"):
        served_model(url)


def settings(*words):
    found = read_settings(list(words), name="benchmark", required=())
    checked(found)
    return found


def test_the_load_generator_is_given_our_load(tmp_path):
    asked = settings("prompt_tokens=32-96", "new_tokens=16", "requests=9", "python=py")
    closed = vllm_command(
        "http://h", "m", {"loop": "closed", "concurrency": 4}, asked, tmp_path / "r.json"
    )
    words = dict(zip(closed[3::2], closed[4::2], strict=False))
    assert words["--random-input-len"] == "64"
    assert words["--random-range-ratio"] == "0.5"  # 64 +- half: 32 to 96
    assert words["--max-concurrency"] == "4"
    assert words["--num-prompts"] == "9"
    poisson = vllm_command("http://h", "m", {"loop": "open", "rate": 2.5}, asked, tmp_path / "r")
    assert poisson[poisson.index("--request-rate") + 1] == "2.5"
    assert "--max-concurrency" not in poisson


def test_options_are_a_mapping():
    assert settings("options={max_model_len: 128}")["options"] == {"max_model_len": 128}


def test_guidellm_is_named_where_it_is_missing(tmp_path):
    from compress.errors import BadInput

    with pytest.raises(BadInput, match=r"pip install 'guidellm>=0\.8'"):
        guidellm_command("http://h", "m", {"rate": 1}, settings("python=/no/py"), tmp_path / "r")


def test_guidellm_is_given_our_load(tmp_path):
    program = tmp_path / "guidellm"
    program.touch()
    asked = settings("prompt_tokens=32-96", "new_tokens=16", "requests=9",
                     f"python={tmp_path / 'python'}")  # fmt: skip
    command = guidellm_command("http://h", "m", {"concurrency": 4}, asked, tmp_path / "r.json")
    assert command[1] == "run" and "kind=concurrent,streams=4" in command
    assert "kind=max_requests,count=9" in command
    data = command[command.index("--data") + 1]
    assert "prompt_tokens_min=32" in data and "output_tokens=16" in data
    poisson = guidellm_command("http://h", "m", {"rate": 2.5}, asked, tmp_path / "r.json")
    assert "kind=poisson,rate=2.5" in poisson


def guidellm_report(count=3):
    ends = {"p50": 2.0, "p95": 3.0, "p99": 4.0}
    names = ("request_latency", "time_to_first_token_ms", "inter_token_latency_ms",
             "output_tokens_per_second", "requests_per_second")  # fmt: skip
    one = {"successful": {"mean": 2.5, "count": count, "percentiles": ends}}
    return {"benchmarks": [{"metrics": dict.fromkeys(names, one)}]}


def test_guidellms_seconds_become_milliseconds():
    found = guidellm_figures(guidellm_report(), "http://h")
    assert found["latency_ms"] == {"mean": 2500.0, "p50": 2000.0, "p95": 3000.0, "p99": 4000.0}
    assert found["first_token_ms"]["mean"] == 2.5 and found["requests"] == 3


def test_guidellms_report_of_another_version_or_without_answers_is_an_error():
    with pytest.raises(ServerFailed, match=r"version 0\.8"):
        guidellm_figures({"results": []}, "http://h")
    with pytest.raises(ServerFailed, match="none of the requests"):
        guidellm_figures(guidellm_report(count=0), "http://h")


def test_a_load_that_was_refused_as_a_whole_is_an_error():
    with pytest.raises(ServerFailed, match="none of the requests"):
        vllm_figures({"completed": 0}, "http://h")


def test_the_models_figures_stay_when_the_baselines_server_does_not_start(
    folder, tmp_path, monkeypatch, capsys
):
    from compress.scripts.lib import benchmark_server

    figures = {
        "requests": 2, "first_token_ms": {"mean": 1.0}, "per_token_ms": {"mean": 1.0},
        "latency_ms": {"mean": 2.0, "p50": 2.0, "p95": 2.0, "p99": 2.0},
        "tokens_per_second": 5.0, "requests_per_second": 1.0,
    }  # fmt: skip

    @contextmanager
    def starting(name, _):
        if name == "baseline":
            raise ServerFailed("vLLM's server ended before it answered")
        yield "http://h"

    monkeypatch.setattr(benchmark_server, "_server", starting)
    monkeypatch.setattr(benchmark_server, "served_model", lambda _: "m")
    monkeypatch.setattr(benchmark_server, "generate_load", lambda *_: figures)
    out = tmp_path / "b.json"
    words = ["engine=server", "python=/bin/sh", f"model={folder}", f"baseline={folder}"]
    assert benchmark.main([*words, "concurrency=[1,2]", f"out={out}"]) == 2
    assert "ended before it answered" in capsys.readouterr().err
    kept = json.loads(out.read_text())
    assert kept["status"] == "failed"
    assert [run["model"]["requests"] for run in kept["runs"]] == [2, 2]


def test_what_a_run_reached_stays_when_the_server_fails(tmp_path, capsys):
    out = tmp_path / "b.json"
    words = ["engine=server", "url=http://127.0.0.1:9", "python=/bin/sh", f"out={out}"]
    assert benchmark.main(words) == 2
    assert "is down" in capsys.readouterr().err
    kept = json.loads(out.read_text())
    assert kept["status"] == "failed"
    assert kept["runs"] == []
