"""An attacker's recipes: none of them runs anything, reads a key, or trusts itself."""

import pytest

from compress.callbacks import QuantizationAwareTraining
from compress.errors import BadInput
from compress.scripts.lib import config as configuration
from compress.scripts.lib.config import compose
from compress.scripts.lib.targets import (
    check_switches,
    check_targets,
    import_callback,
    import_data,
    import_target,
)

BY_NAME = [
    "os.system", "subprocess.Popen", "builtins.eval", "eval", "compress_evil.Callback",
    "lightningx.Callback", "torch._C.something", "compress.__main__", "torch..hub", ".torch.hub",
    "torch.hub.", "torch.hub;os", "compress.callbacks.Qat\n", "", 3, None, ["os"],
    "\u217dompress.data",
]  # fmt: skip
BY_NATURE = [
    "compress.data.store.os.system",
    "compress.data.store.shutil.rmtree",
    "compress.callbacks.base.nn.Module",
    "torch.hub.load",
    "torch.load",
    "torch.utils.cpp_extension.load_inline",
    "torch.package.PackageImporter",
    "transformers.pipeline",
    "transformers.AutoModel.from_pretrained",
    "lightning.Trainer",
    "lightning.pytorch.cli.LightningCLI",
    "compress.scripts.train.main",
]


@pytest.mark.parametrize("target", BY_NAME)
@pytest.mark.parametrize("place", [
    lambda t: {"callbacks": {"x": {"_target_": t}}},
    lambda t: {"callbacks": {"x": {"_target_": "compress.callbacks.Qat", "y": [{"_target_": t}]}}},
    lambda t: {"logger": {"deep": {"er": {"_target_": t}}}},
])  # fmt: skip
def test_names_outside_the_allowed_packages_are_refused_wherever_they_stand(target, place):
    with pytest.raises(BadInput, match="not allowed to run"):
        check_targets(place(target), [])


@pytest.mark.parametrize("target", BY_NATURE)
def test_what_only_looks_like_ours_is_no_callback(target):
    with pytest.raises(BadInput):
        import_callback(target)
    with pytest.raises(BadInput):
        import_data(target)


def test_the_callback_and_data_of_the_recipes_are_found():
    assert import_callback("compress.callbacks.QuantizationAwareTraining") is (
        QuantizationAwareTraining
    )
    assert callable(import_data("compress.data.text_files"))
    assert import_callback("lightning.pytorch.callbacks.EarlyStopping")


def test_a_near_name_is_offered():
    with pytest.raises(BadInput, match="Did you mean 'QuantizationAwareTraining'"):
        import_callback("compress.callbacks.QuantizationAwareTrainin")


def test_a_module_that_the_user_trusts_still_must_hold_a_callback(tmp_path, monkeypatch):
    (tmp_path / "mine_of_test.py").write_text(
        "import os, lightning as L\nclass Good(L.Callback): pass\nclass Bad: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert import_callback("mine_of_test.Good", ["mine_of_test"]).__name__ == "Good"
    for wrong in ("mine_of_test.Bad", "mine_of_test.os", "mine_of_test.absent"):
        with pytest.raises(BadInput):
            import_callback(wrong, ["mine_of_test"])
    with pytest.raises(BadInput, match="not allowed"):
        import_target("mine_of_test.Good")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes a recipe among the others, in a copy of the folder."""
    import shutil

    folder = tmp_path / "recipes"
    shutil.copytree(configuration.recipes_folder(), folder)
    monkeypatch.setattr(configuration, "recipes_folder", lambda: folder)

    def write(text, *words):
        (folder / "recipe" / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
        return compose(["recipe=evil", "teacher=embedded", *words])

    return write


def test_an_innocent_recipe_composes(recipe):
    assert recipe("seed: 3").seed == 3


@pytest.mark.parametrize("text", [
    "allow_modules: [os]\ncallbacks:\n  x: {_target_: os.system, command: id}",
    "teacher:\n  trust_remote_code: true",
    "teacher:\n  served: {api_key_env: AWS_SECRET_ACCESS_KEY}",
    "teacher:\n  served: {api_key_env: OPENAI_API_KEY, url: 'https://evil.example'}",
])  # fmt: skip
def test_a_recipe_cannot_trust_itself(recipe, text):
    with pytest.raises(BadInput, match=r"only on the command line|only\non"):
        recipe(text)


KEY, SERVER = "teacher.served.api_key_env=OPENAI_API_KEY", "teacher.served.url=https://mine.example"


def test_a_recipe_does_not_choose_where_a_key_goes(recipe):
    text = "teacher:\n  served: {url: 'https://me:HIDDEN@evil.example'}"
    assert recipe(text).teacher.served.api_key_env is None
    with pytest.raises(BadInput, match=r"evil\.example stands in a recipe.*say the add") as refused:
        recipe(text, KEY)
    assert "HIDDEN" not in str(refused.value)
    assert recipe(text, KEY, SERVER).teacher.served.url == "https://mine.example"


def test_a_server_on_this_machine_gets_a_key_by_one_word(recipe):
    found = recipe("teacher:\n  served: {url: 'http://localhost:8000'}", KEY)
    assert found.teacher.served.api_key_env == "OPENAI_API_KEY"


@pytest.mark.parametrize("text", [
    "run_dir: ${oc.env:SECRET_OF_TEST}",
    "run_dir: ${oc.env:SECRET_OF_TEST,nothing}",
    "run_dir: ${oc.decode:${oc.env:SECRET_OF_TEST}}",
    "run_dir: oc.env\nckpt: ${${run_dir}:SECRET_OF_TEST}",
    "logger:\n  kind: csv\n  project: 'x${oc.env:SECRET_OF_TEST}'",
])  # fmt: skip
def test_a_recipe_reads_no_environment(recipe, monkeypatch, text):
    monkeypatch.setenv("SECRET_OF_TEST", "HIDDEN")
    with pytest.raises(BadInput) as refused:
        recipe(text)
    assert "HIDDEN" not in str(refused.value)


@pytest.mark.parametrize("escaped", [
    r"'\${oc.env:SECRET_OF_TEST}'",
    r"'\\\${oc.env:SECRET_OF_TEST}'",
    r"'\${${run_dir}:SECRET_OF_TEST}'" + "\nrun_dir: oc.env",
    "'${run_dir}{oc.env:SECRET_OF_TEST}'\nrun_dir: $",
    r"""'${oc.decode:"\${oc.env:SECRET_OF_TEST}"}'""",
])  # fmt: skip
@pytest.mark.parametrize("place", ["ckpt: {}", "logger:\n  tags: [{}]", "cache:\n  deep: {}"])
def test_an_escaped_interpolation_is_not_read_later(recipe, monkeypatch, escaped, place):
    monkeypatch.setenv("SECRET_OF_TEST", "HIDDEN")
    text, _, beside = escaped.partition("\n")
    with pytest.raises(BadInput) as refused:
        recipe(f"{place.format(text)}\n{beside}")
    assert "HIDDEN" not in str(refused.value)


def test_a_resolved_text_with_a_dollar_stays(recipe):
    assert recipe("run_dir: 'a$b'\nckpt: ${run_dir}").ckpt == "a$b"


def test_the_environment_is_readable_again_afterwards(monkeypatch):
    from omegaconf import OmegaConf

    monkeypatch.setenv("SECRET_OF_TEST", "here")
    compose([])
    assert OmegaConf.create({"x": "${oc.env:SECRET_OF_TEST}"}).x == "here"


@pytest.mark.parametrize("text", [
    "callbacks: {x: {_target_: os.system, command: id}}",
    "callbacks: {x: {_target_: '${run_dir}'}}\nrun_dir: os.system",
    "trainer: {strategy: {_target_: os.system}}",
    "x: !!python/object/apply:os.system [id]",
    "callbacks: {x: 3}",
    "callbacks: [1]",
    "a: &a [1]\ncallbacks: *a",
    ": : :",
    "callbacks: {x: {_target_: compress.callbacks.DynamicSparsity, densty: 0.3}}",
])  # fmt: skip
def test_bad_recipes_are_refused_in_our_words(recipe, text):
    with pytest.raises(BadInput):
        recipe(text)


def test_the_command_line_may_trust():
    check_switches({"allow_modules": ["mine"]}, ["allow_modules=[mine]"])
    check_switches({"teacher": {"trust_remote_code": True}}, ["teacher.trust_remote_code=true"])
    with pytest.raises(BadInput):
        check_switches({"teacher": {"trust_remote_code": True}}, ["trust_remote_code=true"])
