"""All models of a run read the ids of one tokenizer: another one's are refused before training."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from compress.data.tokenizer import train_byte_bpe
from compress.errors import BadInput
from compress.scripts.lib import build
from compress.scripts.train import main
from tests.data.texts import story, write_lines
from tests.tiny import tiny_llama

FOREIGN = "zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich\n"
TEXTS = {"ours": story(words=400), "like": story(words=400), "other": FOREIGN * 9}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Checkpoints of one size: `like` has the tokenizer of `ours`, `other` another, `bare` none."""
    folders = {name: tmp_path_factory.mktemp(name) for name in (*TEXTS, "bare")}
    for name, folder in folders.items():
        tiny_llama(vocab_size=300).save_pretrained(folder)
        if name in TEXTS:
            train_byte_bpe([TEXTS[name]], vocab_size=300).save_pretrained(folder)
    return {name: str(folder) for name, folder in folders.items()}


def config_of(*, teacher=None, student=None, **callbacks):
    return OmegaConf.create(
        {"teacher": {"path": teacher}, "student": {"path": student}, "callbacks": callbacks}
    )


def test_models_of_one_tokenizer_pass(models):
    config = config_of(
        teacher=models["ours"], student=models["like"], first={"teacher": models["ours"]},
        second={"teachers": {"small": models["like"]}}, third={"alignment": "uld"},
    )  # fmt: skip
    assert len(build.build_tokenizer(config)) == 300


def test_every_model_of_another_tokenizer_is_refused_by_its_setting(models):
    config = config_of(
        teacher=models["ours"], student=models["other"], first={"teacher": models["other"]},
        second={"teachers": {"small": models["other"]}},
    )  # fmt: skip
    with pytest.raises(BadInput, match="tokenize differently") as refused:
        build.build_tokenizer(config)
    settings = [line.partition("=")[0] for line in str(refused.value).splitlines()]
    assert settings == [
        "student.path",
        "callbacks.first.teacher",
        "callbacks.second.teachers.small",
    ]


@pytest.mark.parametrize("alignment", ["same", "uld"])
def test_no_alignment_makes_two_tokenizers_one(models, alignment):
    config = config_of(
        teacher=models["ours"], student=models["other"], logits={"alignment": alignment}
    )
    with pytest.raises(BadInput, match="with alignment=uld too"):
        build.build_tokenizer(config)


def test_a_checkpoint_without_a_tokenizer_takes_the_runs_unless_two_are_asked_for(models):
    build.build_tokenizer(config_of(teacher=models["ours"], student=models["bare"]))
    config = config_of(teacher=models["ours"], student=models["bare"], logits={"alignment": "uld"})
    with pytest.raises(BadInput, match=r"callbacks\.logits\.alignment=uld .*student\.path"):
        build.build_tokenizer(config)


def test_a_tokenizer_that_the_data_brings_is_compared_too(models, monkeypatch):
    data = SimpleNamespace(tokenizer=train_byte_bpe([TEXTS["ours"]], vocab_size=300))
    monkeypatch.setattr(build, "import_data", lambda *_: lambda *, tokenizer, cache_dir: data)
    for name in ("like", "other"):
        config = config_of(first={"teacher": models[name]})
        config.update({"data": {"_target_": "x"}, "allow_modules": [], "task": "causal_lm"})
        assert build.build_tokenizer(config) is None
        if name == "like":
            assert build.build_data(config, None) is data
        else:
            with pytest.raises(BadInput, match=r"first\.teacher=.* and the data tokenize"):
                build.build_data(config, None)


def test_a_run_stops_before_its_data_is_read(models, tmp_path, monkeypatch, capsys):
    path = write_lines(tmp_path / "a.jsonl", [{"text": story(words=60)}] * 20)
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    status = main(
        ["teacher=hf", f"teacher.path={models['ours']}", "student=hf", "data=text",
         f"student.path={models['other']}", f"data.path={path}", f"run_dir={tmp_path / 'run'}",
         "logger=none", "verbose=false", "target=null"]
    )  # fmt: skip
    assert status == 2
    assert "tokenize differently" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
