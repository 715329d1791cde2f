"""`scripts/train.py` end to end: what a run leaves behind, how it resumes, what it refuses."""

import math

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.callbacks import LogitsDistillation, QuantizationAwareTraining
from compress.scripts.lib.compare import compresses, learns_from_teacher
from compress.scripts.train import main
from tests.scripts.small_run import small_run

FAULT = ("allow_modules=[tests]", "+callbacks.fails._target_=tests.scripts.small_run.Fails")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One compared run, with a plain Lightning callback that does nothing, and where it lies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("runs") / "whole"
        plain = (*FAULT, "+callbacks.fails.after=1000")
        status, report = small_run(folder, "compare=true", "logger=csv", *plain)
        assert status == 0
        yield folder, report


@pytest.fixture
def cache(finished, monkeypatch):
    """The finished run's cache, so that no teacher is trained again."""
    import os

    return os.environ["COMPRESS_CACHE"]


def test_the_report_has_every_loss_size_and_proof(finished):
    _, report = finished
    quality, size = report["quality"], report["size"]
    losses = [quality[k] for k in ("teacher", "start", "start_ptq", "compressed")]
    losses += [quality["compare"][k] for k in ("dense", "ptq", "no_teacher", "kept")]
    assert all(math.isfinite(x) and x > 0 for x in losses)
    assert size["ratio"] == pytest.approx(size["teacher_bytes"] / size["compressed_bytes"])
    (export,) = report["exports"]
    assert export["verified"] and export["codes_equal"] and export["max_abs_logit_diff"] <= 1e-5
    assert report["status"] == "finished" and report["seconds"]["train"] > 0


def test_a_plain_callback_is_part_of_each_training_of_a_comparison():
    plain, logits, qat = L.Callback(), LogitsDistillation(), QuantizationAwareTraining()
    assert [compresses(c) for c in (plain, logits, qat)] == [False, False, True]
    assert [learns_from_teacher(c) for c in (plain, logits, qat)] == [False, True, False]


def test_kept_follows_from_the_losses_beside_it(finished):
    quality = finished[1]["quality"]
    kept = math.exp(quality["compare"]["dense"] - quality["compressed"])
    assert quality["compare"]["kept"] == pytest.approx(kept)


def test_the_export_has_the_loss_that_the_report_names(finished):
    from transformers import LlamaForCausalLM

    from compress.evaluate.quality import token_loss
    from compress.export.reload import reload_model
    from compress.scripts.lib import build, trainer
    from compress.scripts.lib.config import compose
    from tests.scripts.small_run import SMALL

    folder, report = finished
    config = compose(list(SMALL))
    data = build.build_data(config, None)
    model = reload_model(folder / "export" / "vllm", LlamaForCausalLM)
    loss = token_loss(model, trainer.validation_batches(data, config.trainer)()).loss
    assert loss == pytest.approx(report["quality"]["compressed"], abs=1e-4)


def test_the_export_loads_with_its_tokenizer_and_writes_text(finished):
    path = finished[0] / "export" / "vllm"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    tokens = tokenizer("import os", return_tensors="pt", return_token_type_ids=False)
    written = model.generate(**tokens, max_new_tokens=4, do_sample=False)
    assert written.shape[1] == tokens["input_ids"].shape[1] + 4
    codes = load_file(path / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    assert codes.dtype == torch.int8


def test_the_folder_holds_what_was_promised_and_nothing_half_written(finished):
    folder, _ = finished
    names = {p.name for p in folder.iterdir()}
    assert {"config.yaml", "report.json", "report.html", "metrics.jsonl", "checkpoints"} <= names
    left = [p for p in folder.rglob("*") if ".tmp" in p.name or "partial" in p.name]
    assert left == [] and [p.name for p in (folder / "export").iterdir()] == ["vllm"]


def test_a_run_that_went_down_resumes_to_the_same_weights(cache, finished, tmp_path):
    with pytest.raises(RuntimeError, match="went down"):
        small_run(tmp_path / "cut", *FAULT, "+callbacks.fails.after=5")
    status, report = small_run(tmp_path / "cut", "ckpt=last")
    assert status == 0 and report["status"] == "finished"
    whole, resumed = (
        load_file(folder / "export" / "vllm" / "model.safetensors")
        for folder in (finished[0], tmp_path / "cut")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert report["quality"]["start_ptq"] == finished[1]["quality"]["start_ptq"]


def test_the_same_seed_gives_the_same_run_bit_for_bit(cache, finished, tmp_path):
    small_run(tmp_path / "again")
    one, other = (
        load_file(folder / "export" / "vllm" / "model.safetensors")
        for folder in (finished[0], tmp_path / "again")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_w4a16_in_groups_is_one_word_away(cache, tmp_path):
    words = ("callbacks.qat.scheme=W4A16", "callbacks.qat.group_size=32")
    _, report = small_run(tmp_path / "w4", *words)
    assert report["exports"][0]["verified"]
    assert {layer["bits"] for layer in report["layers"]} == {4}


def test_every_layer_that_a_group_does_not_divide_is_refused_before_training(
    cache, tmp_path, capsys
):
    words = ("callbacks.qat.scheme=W4A16", "callbacks.qat.group_size=96")
    assert small_run(tmp_path / "bad", *words)[0] == 2
    said = capsys.readouterr().err
    assert "down_proj" in said and "q_proj" in said and "96" in said
    assert not (tmp_path / "bad" / "checkpoints").exists()


def test_a_second_run_in_one_folder_is_refused(finished, capsys):
    assert small_run(finished[0])[0] == 2
    assert "ckpt=last" in capsys.readouterr().err


def test_what_the_target_cannot_serve_is_refused_before_the_teacher_is_trained(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "empty"))
    words = ("callbacks.qat.scheme=W4A16", "callbacks.qat.group_size=96")
    assert small_run(tmp_path / "bad", *words)[0] == 2
    assert "down_proj" in capsys.readouterr().err
    assert not (tmp_path / "empty" / "teachers").exists()


@pytest.mark.parametrize(
    "words,said",
    [
        (["recipe=distil_qat"], "distill_qat"),
        (["recipe=distill_qat", "callbacks.qat.schem=W8A8"], "scheme"),
        (["recipe=distill_qat", "teacher=hf", "teacher.path=./nowhere"], "nowhere"),
        (["recipe=distill_qat", "ckpt=last", "run_dir=./nothing-here"], "no run at"),
        (["recipe=distill_qat", "teacher=none"], "teacher"),
    ],
)
def test_bad_input_is_told_with_the_way_out(cache, words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_quantisation_that_starts_later_claims_no_post_training_loss(cache, tmp_path):
    status, report = small_run(tmp_path / "late", "callbacks.qat.start_step=2")
    assert status == 0 and report["exports"][0]["verified"]
    assert report["quality"].get("start_ptq") is None
    assert report["quality"]["compressed"] > 0
