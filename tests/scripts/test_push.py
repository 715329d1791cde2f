"""Claims about sending an export to the hub; the hub itself is played by a class that records."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from compress.errors import BadInput
from compress.export.hub import checked_folder, push_to_hub
from compress.scripts.push import main


class Hub:
    """Stands in for huggingface_hub.HfApi."""

    calls: list = []  # noqa: RUF012
    files: tuple = ()
    private = True

    def create_repo(self, repo_id, **settings):
        self.calls.append(("repo", repo_id, settings))

    def create_branch(self, repo_id, **settings):
        self.calls.append(("branch", repo_id, settings))

    def model_info(self, repo_id):
        return SimpleNamespace(private=self.private)

    def list_repo_files(self, repo_id, *, revision=None):
        return list(self.files)

    def upload_folder(self, **settings):
        self.calls.append(("upload", settings["repo_id"], settings))
        return SimpleNamespace(commit_url="https://hub.example/commit/1")


@pytest.fixture
def hub(monkeypatch):
    Hub.calls = []
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    return Hub


@pytest.fixture
def exported(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "README.md").write_text("# A model")
    save_file({"a": torch.zeros(8)}, tmp_path / "model.safetensors")
    return tmp_path


def test_the_whole_folder_goes_up_in_one_commit_to_a_private_repository(hub, exported):
    assert push_to_hub(exported, "me/small") == "https://hub.example/commit/1"
    assert [call[0] for call in hub.calls] == ["repo", "upload"]
    assert hub.calls[0][2] == {"private": True, "exist_ok": True}
    assert hub.calls[1][2]["folder_path"] == str(exported)


def test_a_branch_is_made_where_one_is_named(hub, exported):
    push_to_hub(exported, "me/small", revision="w4a16", private=False)
    assert hub.calls[1][:2] == ("branch", "me/small") and hub.calls[2][2]["revision"] == "w4a16"


OLDER = (
    ".gitattributes", "config.json", "model.safetensors", "other/model.safetensors", "notes.txt",
    "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model[1].onnx",
    "model.onnx.data", "model.pt2", "hf_quant_config.json",
)  # fmt: skip


def test_weights_of_an_earlier_export_leave_with_the_commit_that_brings_the_new_ones(
    hub, exported, monkeypatch
):
    from huggingface_hub.utils import filter_repo_objects

    monkeypatch.setattr(hub, "files", OLDER)
    push_to_hub(exported, "me/small")
    patterns = hub.calls[-1][2]["delete_patterns"]
    assert list(filter_repo_objects(OLDER, allow_patterns=patterns)) == [*OLDER[5:]]


def test_a_sharded_export_takes_a_single_file_out(hub, exported, monkeypatch):
    monkeypatch.setattr(hub, "files", ("model.safetensors", "README.md"))
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (exported / "model.safetensors").rename(exported / "model-1.safetensors")
    (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    push_to_hub(exported, "me/small")
    assert hub.calls[-1][2]["delete_patterns"] == ["model.safetensors"]


def test_what_shall_be_private_is_not_sent_to_a_public_repository(
    hub, exported, monkeypatch, capsys
):
    monkeypatch.setattr(hub, "private", False)
    assert main([f"path={exported}", "repo=me/small", "private=true"]) == 2
    assert "BadInput: private=true, but me/small is public already" in capsys.readouterr().err
    assert "upload" not in [call[0] for call in hub.calls]
    for words in ([], ["private=false"]):
        assert main([f"path={exported}", "repo=me/small", *words]) == 0


def _cut(file):
    file.write_bytes(file.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", _cut, "model.safetensors is damaged"),
        ("config.json", lambda file: file.write_text(""), "holds no JSON object"),
        ("model.safetensors.index.json", lambda file: file.write_text("{"), "has no weight_map"),
    ],
)
def test_a_damaged_export_is_not_sent(hub, exported, name, damage, said):
    damage(exported / name)
    with pytest.raises(BadInput, match=said):
        push_to_hub(exported, "me/small")
    assert hub.calls == []


def test_an_onnx_export_may_be_sent(hub, exported):
    (exported / "model.safetensors").rename(exported / "model.onnx")
    assert push_to_hub(exported, "me/small")


def test_a_hub_that_is_not_reached_is_told_without_a_traceback(exported, monkeypatch, capsys):
    class Down(Hub):
        def create_repo(self, repo_id, **settings):
            raise RuntimeError("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi", Down)
    assert main([f"path={exported}", "repo=me/small"]) == 2
    said = capsys.readouterr().err
    assert "me/small was not sent: RuntimeError: [Errno -2] Name or service not known" in said


@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors"])
def test_half_an_export_is_not_sent(hub, exported, name):
    (exported / name).unlink()
    with pytest.raises(BadInput, match=name.replace("model", r"\*").replace(".", r"\.")):
        push_to_hub(exported, "me/small")
    assert hub.calls == []


def test_a_missing_shard_is_named(exported):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (exported / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"model-1\.safetensors"):
        checked_folder(exported)


def test_a_refusal_of_the_hub_is_one_line(hub, exported, monkeypatch, capsys):
    def refuse(self, *_, **__):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    assert main([f"path={exported}", "repo=me/small"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("BadInput: me/small was not sent: OSError: no route. The hub is not")
    assert said.count("\n") == 1


@pytest.mark.parametrize("words, said", [
    (["path=x"], "give path=DIR and repo"),
    (["path=x", "repo=small"], "x: there is no such folder"),
    (["path=x", "rep=me/small"], "Did you mean 'repo'?"),
    (["path=x", "repo=me/small", "private=maybe"], "true or false"),
])  # fmt: skip
def test_bad_input_is_told(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_the_script_prints_the_commit(hub, exported, capsys):
    assert main([f"path={exported}", "repo=me/small", "private=false"]) == 0
    assert "https://hub.example/commit/1" in capsys.readouterr().out
    assert hub.calls[0][2]["private"] is False
