"""Run folders from elsewhere: opening one runs nothing, reads no key, trusts nothing by itself."""

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from compress.errors import BadInput
from compress.scripts.evaluate import main as evaluate
from compress.scripts.export import main as export
from compress.scripts.lib.config import compose
from compress.scripts.lib.restore import run_config
from compress.scripts.lib.resume import refuse_other_training
from tests.scripts.small_run import small_run

FAULT = ("allow_modules=[tests]", "+callbacks.fails._target_=tests.scripts.small_run.Fails")
HUBCONF = """
import pathlib
pathlib.Path({mark!r}).touch()
def dataset(**_):
    raise SystemExit(3)
"""


@pytest.fixture
def foreign(tmp_path):
    """Writes a run folder as a stranger would hand it over; answers it."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {}, "global_step": 1}, folder / "checkpoints" / "last.ckpt")

    def write(**changes):
        plain = OmegaConf.to_container(compose(["recipe=qat"]))
        text = OmegaConf.to_yaml(OmegaConf.create({**plain, **changes}))
        (folder / "config.yaml").write_text(text)
        return folder

    return write


def opened(folder, *words):
    """Exit statuses of every program that opens a run."""
    told = [f"model={folder}", *words]
    return [
        export([f"run_dir={folder}", *words]), evaluate(told),
        evaluate([*told, "data.sequence_length=32"]),
    ]  # fmt: skip


def test_a_run_from_elsewhere_runs_none_of_its_code(foreign, tmp_path, capsys):
    code, mark = tmp_path / "code", tmp_path / "it_ran"
    code.mkdir()
    (code / "hubconf.py").write_text(HUBCONF.format(mark=str(mark)))
    data = {
        "_target_": "torch.hub.load", "repo_or_dir": str(code), "model": "dataset",
        "source": "local",
    }  # fmt: skip
    assert opened(foreign(allow_modules=["torch"], data=data)) == [2, 2, 2]
    said = capsys.readouterr().err
    assert said.count("say so on the command line: allow_modules=[torch]") == 3
    assert opened(foreign(data=data)) == [2, 2, 2]
    assert not mark.exists()


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_run_does_not_trust_the_code_beside_its_own_models(foreign, who, capsys):
    settings = OmegaConf.to_container(compose(["recipe=qat"])[who])
    folder = foreign(**{who: {**settings, "trust_remote_code": True}})
    assert opened(folder) == [2, 2, 2]
    said = capsys.readouterr().err
    assert said.count(f"{who}.trust_remote_code=True lets foreign code run") == 3
    assert said.count("on the command line: trust_remote_code=true") == 3
    file = folder / "config.yaml"
    assert run_config(file, trust_remote_code=True)[who].trust_remote_code


@pytest.mark.parametrize("text", [
    "run_dir: ${oc.env:SECRET_OF_TEST}",
    "data: ${oc.env:SECRET_OF_TEST}",
    "data: '${oc.create:\"{_target_: torch.hub.load}\"}'",
    r"logger: {kind: csv, tags: ['\${oc.env:SECRET_OF_TEST}']}",
    "trainer: {precision: '${oc.env:SECRET_OF_TEST}'}",
])  # fmt: skip
def test_a_run_reads_no_environment(foreign, monkeypatch, text):
    monkeypatch.setenv("SECRET_OF_TEST", "HIDDEN")
    folder = foreign(**yaml.safe_load(text))
    with pytest.raises(BadInput, match=r"holds \$\{\.\.\.\}") as refused:
        run_config(folder / "config.yaml")
    assert "HIDDEN" not in str(refused.value)
    with pytest.raises(BadInput) as refused:
        refuse_other_training(compose([f"run_dir={folder}", "ckpt=last", "recipe=qat"]), folder)
    assert "HIDDEN" not in str(refused.value)


def test_what_a_run_allows_counts_for_nothing(foreign):
    file = foreign(allow_modules=["mine.callbacks"]) / "config.yaml"
    assert run_config(file, allow_modules=["mine"]).allow_modules == ["mine"]
    with pytest.raises(BadInput, match=r"allow_modules=\[mine\.callbacks\]$"):
        run_config(file, allow_modules=["mine.callback"])
    assert run_config(foreign() / "config.yaml").allow_modules == []


def test_a_run_of_ones_own_with_a_trusted_callback_opens_by_the_same_word(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    words = ("recipe=qat", "trainer.max_steps=2", *FAULT, "+callbacks.fails.after=9")
    assert small_run(folder, *words)[0] == 0
    assert export([f"run_dir={folder}"]) == 2
    assert export([f"run_dir={folder}", FAULT[0]]) == 0
    assert evaluate([f"model={folder}", FAULT[0], "max_batches=1"]) == 0
