"""engine=server: load generators are given our load and read; servers down, refusing, stalling."""

import http.server
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from compress.data.tokenizer import train_byte_bpe
from compress.errors import BadInput
from compress.scripts import benchmark
from compress.scripts.lib import benchmark_server, load_generators
from compress.scripts.lib.benchmark_server import _ratios, served_model
from compress.scripts.lib.benchmark_settings import checked
from compress.scripts.lib.benchmark_tables import print_run
from compress.scripts.lib.load_generators import (
    PROMPTS_FILE,
    ServerFailed,
    Target,
    drawn_lengths,
    run_command,
    write_prompts,
)
from compress.scripts.lib.load_guidellm import guidellm_command, guidellm_figures, guidellm_missing
from compress.scripts.lib.load_mlperf import mlperf_figures, mlperf_missing
from compress.scripts.lib.load_vllm import vllm_command, vllm_figures, vllm_missing
from compress.scripts.lib.settings import read_settings
from compress.scripts.lib.vllm_server import peak_bytes, server_command, start_server
from tests.data.texts import story
from tests.tiny import tiny_llama

TARGET = Target(url="http://h", model="m", tokenizer="t")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(place)
    train_byte_bpe([story(words=300)], vocab_size=300).save_pretrained(place)
    return place


@contextmanager
def server(answer, post=None):
    """A server on the loopback that does what `answer(handler)` and `post(handler)` do."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def do_POST(self):
            self.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            (post or answer)(self)

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


NAMED = reply('{"data": [{"id": "mine"}]}')


def stream(handler):
    """As many tokens as were asked for, as vLLM sends them."""
    asked = handler.asked
    handler.send_response(200)
    handler.end_headers()
    parts = [{"choices": [{"text": "a"}]}] * asked["max_tokens"]
    for part in [*parts, {"choices": [], "usage": {"completion_tokens": asked["max_tokens"]}}]:
        handler.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
        handler.wfile.flush()
        time.sleep(0.002)
    handler.wfile.write(b"data: [DONE]\n\n")


def settings(*words):
    found = read_settings(list(words), name="benchmark", required=())
    checked(found)
    return found


def measure(folder, out, url, *words):
    quick = ["requests=6", "warm_up=1", "prompt_tokens=4-8", "new_tokens=3", "generator=mlperf"]
    return benchmark.main(
        ["engine=server", f"url={url}", f"model={folder}", *quick, *words, f"out={out}"]
    )


needs_loadgen = pytest.mark.skipif(
    find_spec("mlperf_loadgen") is None, reason="pip install mlcommons-loadgen"
)


@needs_loadgen
def test_loadgen_runs_closed_and_open_loops_to_their_end(folder, tmp_path, capsys):
    out = tmp_path / "b.json"
    with server(NAMED, stream) as url:
        words = ("concurrency=[1,2]", "rates=[50]", "price_per_hour=3")
        assert measure(folder, out, url, *words) == 0
    found = json.loads(out.read_text())
    assert found["status"] == "finished"
    assert [run["loop"] for run in found["runs"]] == ["closed", "closed", "open"]
    for run in found["runs"]:
        figures = run["model"]
        assert (figures["requests"], figures["failed"]) == (6, 0)
        assert 0 < figures["first_token_ms"]["mean"] < figures["latency_ms"]["mean"]
        assert figures["latency_ms"]["p50"] <= figures["latency_ms"]["p99"]
        assert figures["tokens_per_second"] == pytest.approx(3 * figures["requests_per_second"])
        assert figures["dollars_per_million_tokens"] > 0
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "open loop, 50.0 a s" in capsys.readouterr().out


@needs_loadgen
def test_no_prompt_is_sent_twice_neither_to_warm_up_nor_by_the_next_run(folder, tmp_path):
    seen = []

    def noted(handler):
        seen.append(handler.asked["prompt"])
        stream(handler)

    words = ("prompt_tokens=16", "warm_up=3", "concurrency=[1,2]")
    with server(NAMED, noted) as url:
        for out in (tmp_path / "a.json", tmp_path / "b.json"):
            assert measure(folder, out, url, *words) == 0
    assert len(seen) == 2 * 2 * (3 + 6)
    assert len(set(seen)) == len(seen)


@needs_loadgen
def test_requests_that_fail_are_counted_and_the_others_kept(folder, tmp_path):
    lock, seen = threading.Lock(), []

    def every_third(handler):
        with lock:
            seen.append(1)
            number = len(seen)
        (reply("overloaded", 503) if number % 3 == 0 else stream)(handler)

    out = tmp_path / "b.json"
    with server(NAMED, every_third) as url:
        assert measure(folder, out, url, "warm_up=0") == 0
    figures = json.loads(out.read_text())["runs"][0]["model"]
    assert (figures["requests"], figures["failed"]) == (4, 2)


@needs_loadgen
def test_a_server_that_refuses_in_the_second_load_leaves_the_first(folder, tmp_path, capsys):
    seen = []

    def at_first(handler):
        seen.append(1)
        (stream if len(seen) <= 7 else reply("too long", 400))(handler)

    out = tmp_path / "b.json"
    with server(NAMED, at_first) as url:
        assert measure(folder, out, url, "concurrency=[1,2]") == 2
    assert "HTTP 400" in (said := capsys.readouterr().err) and "too long" in said
    kept = json.loads(out.read_text())
    assert kept["status"] == "failed"
    assert [run["model"]["requests"] for run in kept["runs"]] == [6]


def test_a_server_says_what_it_serves():
    with server(NAMED) as url:
        assert served_model(url) == "mine"


def test_servers_that_are_down_refuse_or_are_something_else_are_told_apart():
    with pytest.raises(ServerFailed, match="is down"):
        served_model("http://127.0.0.1:9")
    with server(reply("busy", 503)) as url, pytest.raises(ServerFailed, match="HTTP 503"):
        served_model(url)
    with server(reply("<html>")) as url, pytest.raises(ServerFailed, match="no OpenAI-compatible"):
        served_model(url)


def test_a_stalling_server_is_given_up(monkeypatch):
    monkeypatch.setattr(benchmark_server, "ANSWER_SECONDS", 0.3)
    with server(lambda _: time.sleep(1)) as url, pytest.raises(ServerFailed, match="stalls"):
        served_model(url)


def test_a_request_that_stalls_is_told_before_the_load(folder, tmp_path, capsys):
    with server(NAMED, lambda _: time.sleep(3)) as url:
        assert measure(folder, tmp_path / "b.json", url, "timeout=1") == 2
    assert "stalls: no answer within 1" in capsys.readouterr().err


def test_a_generator_that_does_not_end_is_ended_with_all_it_started(tmp_path):
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(ServerFailed, match="stalls"):
        run_command([sys.executable, "-c", code], url="http://h", timeout=3)
    until = time.monotonic() + 20
    while _runs(pid.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(pid.read_text())


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_what_a_generator_says_in_the_end_reaches_the_user():
    with pytest.raises(ServerFailed, match="no such model"):
        run_command(
            [sys.executable, "-c", "import sys; sys.exit('no such model')"], url="u", timeout=60
        )


def test_prompts_have_the_drawn_lengths(folder, tmp_path):
    lengths = drawn_lengths(settings("prompt_tokens=4-9", "new_tokens=1-5", "requests=20"))
    assert {p for p, _ in lengths} <= set(range(4, 10)) and len({n for _, n in lengths}) > 2
    write_prompts(tmp_path, tokenizer=str(folder), lengths=lengths, seed=0)
    lines = [json.loads(line) for line in (tmp_path / PROMPTS_FILE).read_text().splitlines()]
    assert [line["output_tokens"] for line in lines] == [new for _, new in lengths]
    assert [line["prompt_tokens_count"] for line in lines] == [prompt for prompt, _ in lengths]
    assert len({line["prompt"] for line in lines}) > 15


def test_recorded_lengths_are_those_of_the_load(tmp_path):
    file = tmp_path / "l.jsonl"
    file.write_text(
        '{"prompt_tokens": 5, "new_tokens": 2}\n{"prompt_tokens": 7, "new_tokens": 0}\n'
    )
    lengths = drawn_lengths(settings(f"lengths={file}", "requests=3"))
    assert lengths == [(5, 2), (7, 1), (5, 2)]  # a server writes one token at least


def test_a_model_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(BadInput, match="no tokenizer"):
        write_prompts(tmp_path, tokenizer=str(tmp_path), lengths=[(3, 1)], seed=0)


def test_vllms_generator_is_given_our_load(tmp_path):
    asked = settings("requests=9", "python=py")
    closed = vllm_command(TARGET, {"concurrency": 4}, asked, tmp_path)
    words = dict(pairwise(closed))
    assert words["--dataset-path"] == str(tmp_path / PROMPTS_FILE)
    assert (words["--max-concurrency"], words["--num-prompts"]) == ("4", "9")
    poisson = vllm_command(TARGET, {"rate": 2.5}, asked, tmp_path)
    assert poisson[poisson.index("--request-rate") + 1] == "2.5"
    assert "--max-concurrency" not in poisson


def vllm_result(count=2):
    ends = {f"{end}_{kind}_ms": 2.0 for end in ("mean", "p50", "p95", "p99")
            for kind in ("ttft", "tpot", "e2el")}  # fmt: skip
    return {"completed": count, "failed": 0, "output_throughput": 5.0, "request_throughput": 1.0,
            "ttfts": [0.1, 0.2], "itls": [[0.01, 0.03], []], "input_lens": [4, 5],
            "output_lens": [3, 1], **ends}  # fmt: skip


def test_vllms_requests_are_read_one_by_one():
    figures, records = vllm_figures(vllm_result(), "http://h")
    assert figures["latency_ms"] == {"mean": 2.0, "p50": 2.0, "p95": 2.0, "p99": 2.0}
    assert [round(record.latency, 6) for record in records] == [0.14, 0.2]
    assert records[0].per_token == pytest.approx(0.02) and records[1].per_token is None


def test_guidellm_is_given_our_load(tmp_path):
    (tmp_path / "guidellm").touch()
    asked = settings("requests=9", f"generator_python={tmp_path / 'python'}")
    command = guidellm_command(TARGET, {"concurrency": 4}, asked, tmp_path)
    assert command[:2] == [str(tmp_path / "guidellm"), "run"]
    assert "kind=concurrent,streams=4" in command and "kind=max_requests,count=9" in command
    assert f"kind=json_file,path={tmp_path / PROMPTS_FILE}" in command
    # a chat's template is no part of a base model
    assert "request_format=/v1/completions" in command[command.index("--backend") + 1]
    poisson = guidellm_command(TARGET, {"rate": 2.5}, asked, tmp_path)
    assert "kind=poisson,rate=2.5" in poisson


def guidellm_report(count=3, errored=()):
    ends = {"p50": 2.0, "p95": 3.0, "p99": 4.0}
    names = ("request_latency", "time_to_first_token_ms", "inter_token_latency_ms",
             "output_tokens_per_second", "requests_per_second")  # fmt: skip
    one = {"successful": {"mean": 2.5, "count": count, "percentiles": ends}}
    sent = {"request_start_time": 5.0, "time_to_first_token_ms": 100.0, "request_latency": 0.5,
            "output_tokens": 5, "prompt_tokens": 8}  # fmt: skip
    earlier = {**sent, "request_start_time": 4.0, "request_latency": 0.9}
    requests = {"successful": [sent, earlier], "errored": list(errored)}
    return {"benchmarks": [{"metrics": dict.fromkeys(names, one), "requests": requests}]}


def test_guidellms_seconds_become_milliseconds_and_its_requests_stand_in_order():
    figures, records = guidellm_figures(guidellm_report(), "http://h")
    assert figures["latency_ms"] == {"mean": 2500.0, "p50": 2000.0, "p95": 3000.0, "p99": 4000.0}
    assert figures["first_token_ms"]["mean"] == 2.5 and figures["requests"] == 3
    assert [record.latency for record in records] == [0.9, 0.5]
    assert records[1].first == 0.1 and records[1].per_token == pytest.approx(0.1)


def test_guidellms_requests_whose_tokens_have_no_text_are_read():
    report = guidellm_report()
    report["benchmarks"][0]["requests"]["successful"][1]["time_to_first_token_ms"] = None
    _, records = guidellm_figures(report, "http://h")
    assert records[0].first == records[0].latency == 0.9


def test_guidellms_report_of_another_version_or_without_answers_is_an_error():
    with pytest.raises(ServerFailed, match=r"version 0\.8"):
        guidellm_figures({"results": []}, "http://h")
    refused = guidellm_report(count=0, errored=[{"info": {"error": "400 Bad Request"}}])
    with pytest.raises(ServerFailed, match=r"none of the requests.*400 Bad"):
        guidellm_figures(refused, "http://h")


def test_loads_that_were_refused_as_a_whole_are_errors():
    with pytest.raises(ServerFailed, match=r"none of the requests.*HTTP 500"):
        vllm_figures({"completed": 0, "errors": ["Traceback\nHTTP 500"]}, "http://h")
    with pytest.raises(ServerFailed, match="none of the requests was answered: HTTP 500"):
        mlperf_figures("", [{"index": 0, "error": "HTTP 500"}], "http://h")


def test_a_loadgen_that_tells_other_figures_is_an_error():
    sent = [{"index": 0, "start": 0.0, "moments": [0.1], "tokens": 1}]
    with pytest.raises(ServerFailed, match="mlcommons-loadgen 6"):
        mlperf_figures("Mean latency (ms) : 5", sent, "http://h")


def test_generators_that_are_missing_come_with_their_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    nowhere = settings(f"generator_python={tmp_path / 'py'}", f"python={tmp_path / 'py'}")
    assert "pip install 'guidellm>=0.8'" in guidellm_missing(nowhere)
    assert "pip install mlcommons-loadgen" in mlperf_missing(nowhere)
    assert "make test-serving" in vllm_missing(nowhere)
    words = ["engine=server", "url=http://h", "generator=guidellm", f"python={tmp_path / 'py'}"]
    assert benchmark.main(words) == 2
    assert "generator=guidellm is not installed" in capsys.readouterr().err


def test_an_environment_without_what_vllms_generator_needs_is_told(tmp_path):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho vllm pandas\n")
    bare.chmod(0o755)
    assert f"{bare} -m pip install vllm pandas" in vllm_missing(settings(f"python={bare}"))


def test_encoders_are_sent_to_another_engine(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    words = ["engine=server", "url=http://h", "generator=mlperf", f"model={tmp_path}"]
    assert benchmark.main(words) == 2
    assert "writes no tokens" in capsys.readouterr().err


def test_vllms_options_are_words_of_its_command_line(tmp_path):
    asked = settings("options={max_model_len: 128, enforce_eager: false}", "python=py")
    command = server_command(str(tmp_path), asked, port=5)
    assert command[command.index("--max-model-len") + 1] == "128"
    assert "--no-enforce-eager" in command and "--enforce-eager" not in command
    assert "--no-enable-prefix-caching" in command


def test_a_server_that_ends_while_it_starts_is_told_with_its_last_words(tmp_path, monkeypatch):
    from compress.scripts.lib import vllm_server

    dying = [sys.executable, "-c", "import sys; sys.exit('no weights')"]
    monkeypatch.setattr(vllm_server, "server_command", lambda *_, **__: dying)
    with (
        pytest.raises(ServerFailed, match="ended before it answered: no weights"),
        start_server("model", settings(f"model={tmp_path}")),
    ):
        pass


def test_the_memory_of_a_servers_processes_is_added_up():
    code = "b = bytearray(10**8); print('there', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    process.stdout.readline()
    assert 10**8 < peak_bytes(process) < 3 * 10**8
    load_generators.end_group(process)
    assert peak_bytes(None) is None


def figures(latency):
    same = {"mean": latency, "p50": latency, "p95": latency, "p99": latency}
    return {
        "requests": 2, "failed": 0, "first_token_ms": same, "per_token_ms": same,
        "latency_ms": same, "tokens_per_second": 100 / latency, "requests_per_second": 1.0,
    }  # fmt: skip


def test_ratios_have_intervals_where_all_requests_were_answered():
    _, records = vllm_figures(vllm_result(), "http://h")
    run = {"loop": "closed", "model": figures(2.0), "baseline": figures(4.0)}
    found = _ratios(run, {"model": records, "baseline": records})
    assert found["latency"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["throughput"] == {"value": 2.0}
    assert "throughput" not in _ratios({**run, "loop": "open"}, {"model": [], "baseline": []})


@pytest.mark.parametrize("arm", ["model", "baseline"])
def test_arms_whose_requests_failed_have_no_ratios_and_the_table_says_so(arm, capsys):
    _, records = vllm_figures(vllm_result(), "http://h")
    run = {"loop": "closed", "concurrency": 1, "model": figures(2.0), "baseline": figures(4.0)}
    run[arm]["failed"] = 14
    run["ratios"] = _ratios(run, {"model": records, "baseline": records})
    assert run["ratios"] == {}
    print_run(run)
    said = " ".join(capsys.readouterr().out.split())
    assert f"no ratios: requests failed (14 of 16 of {arm})" in said
    assert "14 of 16" in said.partition("no ratios")[0]
    assert "model / baseline" not in said


def test_a_table_without_failures_does_not_speak_of_them(capsys):
    print_run({"loop": "closed", "concurrency": 1, "model": figures(2.0)})
    assert "failed" not in capsys.readouterr().out


def test_a_server_without_a_named_generator_is_asked_by_vllms(folder):
    assert settings("engine=server", "url=http://h", f"model={folder}")["generator"] == "vllm"


def test_the_models_figures_stay_when_the_baselines_server_does_not_start(
    folder, tmp_path, monkeypatch, capsys
):
    @contextmanager
    def starting(name, _):
        if name == "baseline":
            raise ServerFailed("vLLM's server ended before it answered")
        yield "http://h", None

    monkeypatch.setattr(benchmark_server, "start_server", starting)
    monkeypatch.setattr(benchmark_server, "served_model", lambda _: "m")
    monkeypatch.setattr(benchmark_server, "generate_load", lambda *_: (figures(2.0), []))
    monkeypatch.setitem(
        benchmark_server.GENERATORS, "vllm",
        load_generators.Generator(command=None, read=None, missing=lambda _: None),
    )  # fmt: skip
    out = tmp_path / "b.json"
    words = ["engine=server", "python=/bin/sh", f"model={folder}", f"baseline={folder}"]
    assert benchmark.main([*words, "concurrency=[1,2]", f"out={out}"]) == 2
    assert "ended before it answered" in capsys.readouterr().err
    kept = json.loads(out.read_text())
    assert kept["status"] == "failed"
    assert [run["model"]["requests"] for run in kept["runs"]] == [2, 2]


@needs_loadgen
def test_a_server_that_is_down_leaves_a_file_that_says_so(folder, tmp_path, capsys):
    out = tmp_path / "b.json"
    assert measure(folder, out, "http://127.0.0.1:9") == 2
    assert "is down" in capsys.readouterr().err
    kept = json.loads(out.read_text())
    assert (kept["status"], kept["runs"]) == ("failed", [])
