"""Existing load generators on vLLM's own server, to their end: `make test-serving`.

GuideLLM and LoadGen run where COMPRESS_GUIDELLM_PYTHON and COMPRESS_MLPERF_PYTHON name an
environment that holds them, or where they lie beside vLLM or this project.
"""

import json
import os

import pytest

from compress.data.tokenizer import train_byte_bpe
from compress.scripts import benchmark
from compress.scripts.lib.benchmark_server import GENERATORS
from compress.scripts.lib.settings import read_settings
from compress.scripts.lib.vllm_server import start_server
from tests.data.texts import story
from tests.serving.test_vllm import PYTHON
from tests.tiny import tiny_llama

pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif(not PYTHON.exists(), reason="no vLLM: `make test-serving` builds it"),
]
OPTIONS = "options={max_model_len: 64}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tokenizer = train_byte_bpe([story(words=300)], vocab_size=300)
    tiny_llama(hidden=128, intermediate_size=256, vocab_size=300).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def words(generator):
    named = os.environ.get(f"COMPRESS_{generator.upper()}_PYTHON")
    return [f"python={PYTHON}", "engine=server", f"generator={generator}",
            *([f"generator_python={named}"] if named else [])]  # fmt: skip


@pytest.fixture(scope="module")
def url(folder):
    asked = [f"model={folder}", f"python={PYTHON}", "engine=server", OPTIONS]
    with start_server("model", read_settings(asked, name="benchmark")) as (address, _):
        yield address


@pytest.mark.parametrize("generator", GENERATORS)
def test_closed_and_open_loops_run_to_their_end(generator, url, folder, tmp_path):
    chosen = words(generator)
    missing = GENERATORS[generator].missing(read_settings(chosen, name="benchmark", required=()))
    if missing:
        pytest.skip(missing)
    out = tmp_path / "b.json"
    load = ["requests=6", "prompt_tokens=8-16", "new_tokens=4", "concurrency=[1,2]", "rates=[4]"]
    assert benchmark.main([*chosen, f"url={url}", f"model={folder}", *load, f"out={out}"]) == 0
    found = json.loads(out.read_text())
    assert [run["loop"] for run in found["runs"]] == ["closed", "closed", "open"]
    for run in found["runs"]:
        figures = run["model"]
        assert (figures["requests"], figures["failed"]) == (6, 0)
        assert 0 < figures["first_token_ms"]["mean"] <= figures["latency_ms"]["mean"]
        assert figures["tokens_per_second"] > 0


def test_a_model_and_its_baseline_are_served_one_after_the_other(folder, tmp_path):
    out = tmp_path / "b.json"
    arms = [f"model={folder}", f"baseline={folder}", OPTIONS, "requests=4", "new_tokens=4",
            "prompt_tokens=8"]  # fmt: skip
    assert benchmark.main([*words("vllm"), *arms, f"out={out}"]) == 0
    found = json.loads(out.read_text())
    assert found["arms"]["model"]["bytes"] > 0
    (run,) = found["runs"]
    assert run["model"]["peak_bytes"] > 10**8
    low, high = (run["ratios"]["latency"][end] for end in ("low", "high"))
    assert low <= run["ratios"]["latency"]["value"] <= high


def test_what_vllms_server_says_of_a_broken_checkpoint_reaches_the_user(folder, tmp_path, capsys):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"nothing")  # no weights at all is told before
    out = tmp_path / "b.json"
    assert benchmark.main([*words("vllm"), f"model={tmp_path}", OPTIONS, f"out={out}"]) == 2
    assert "ended before it answered" in capsys.readouterr().err
    assert json.loads(out.read_text())["status"] == "failed"
