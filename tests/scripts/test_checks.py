"""Claims about bad input: told at once, in our words, with the way out, all of it together."""

import pytest

from compress.errors import BadInput
from compress.scripts import train
from compress.scripts.lib.checks import check_paths
from compress.scripts.lib.config import compose, recipes_folder
from compress.scripts.lib.kinds import check_callback_settings

WRONG = {
    "recipe=distil_qat": "Did you mean 'distill_qat'",
    "trainer=gpo": "Did you mean 'gpu'",
    "callbacks.qat.schem=W4A16": "Did you mean 'scheme'",
    "trainr.max_steps=3": "Did you mean 'trainer'",
    "+callbacks.logits.temprature=3": "Did you mean 'temperature'",
    "+x.y=3": "no setting 'x'",
    "+callbacks.mine=3": "no _target_",
    "callbacks.qat=3": "a group of settings is expected",
    "trainer.max_steps=abc": "a number",
    "trainer.max_steps=2.5": "a whole number",
    "trainer.max_steps=null": "at least 0",
    "trainer.max_steps=-1": "at least 0",
    "training.learning_rate=nan": "finite",
    "training.learning_rate=-1": "more than 0",
    "seed=": "a number",
    "seed=-1": "at least 0",
    "verbose=1": "true or false",
    "data.exclude=tests": "a list",
    "data.validation_share=2": "less than 1",
    "teacher.hidden=100": "multiple of 64",
    "teacher.hidden=null": "multiple of 64",
    "student.layers=9": "the teacher has 6 layers",
    "task=causal": "causal_lm",
    "export_dtype=int8": "float32",
    "trainer.precision=bf16-mix": "Did you mean 'bf16-mixed'",
    "run_dir=": "no path",
    "run_dir=1": "a word is expected",
    "data.roots=1": "a word is expected",
    "~data": "a run needs 'data'",
    "~seed": "a run needs 'seed'",
    "ckpt=[1]": "a word is expected",
    "target=[vllm]": "a word is expected",
    "run_dir=/etc/passwd": "a file",
    "ckpt=nowhere.ckpt": "no such file",
    "trainer.max_steps={": "no viable",
    "run_dir=${run_dir}": "Recursive",
    "~callbacks.absent": "does not exist",
    "foo": "no key=value",
    "=3": "no setting ''",
    "teacher=hf": "teacher.path must be given",
    "student=hf student.path=/no/where": "no such folder",
    "recipe=distill_encoder student=same": "student.layers=null",
    "student=same student.layers=1": "is a whole model",
    "data=text data.path=[]": "empty",
    "data=text data.path=/no/where": "no such file",
    "ckpt=last run_dir=/no/where": "no run at",
    "teacher.host=served teacher.served.url=http://me:pw@host": "//***@host has a user",
    "teacher.host=served teacher.served.url=host:8000": "must look like http",
    "teacher.host=served teacher.served.api_key_env=[1]": "the name of an environment variable",
}


@pytest.mark.parametrize("words", WRONG, ids=str)
def test_wrong_words_are_refused_with_the_way_out(words):
    with pytest.raises(BadInput) as refused:
        check_paths(compose(words.split(" ")))
    assert WRONG[words] in str(refused.value)


def test_every_offender_is_listed():
    with pytest.raises(BadInput) as refused:
        check_paths(compose(["trainer.batch_size=0", "seed=-1", "training.beta2=2", "task=x"]))
    assert len(str(refused.value).splitlines()) == 4
    with pytest.raises(BadInput) as refused:
        compose(["trainer.max_stps=0", "sed=1"])
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["callbacks.qat.overrides={*down_proj: W8A16, foo: null}"],
        ["callbacks.qat.overrides.foo=W4A16"],
        ["+callbacks@callbacks.guard=guard", "callbacks.guard.policy=skip"],
        ["~callbacks.logits"],
        ["trainer.devices=auto", "trainer.clip_norm=null", "target=null"],
        ["recipe=qat", "student.layers=null"],
    ],
    ids=str,
)
def test_right_words_pass(words):
    check_paths(compose(words))


def test_a_path_is_offered_where_one_is_near(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("x")
    with pytest.raises(BadInput, match=r"Did you mean 'shakespeare.txt'"):
        check_paths(compose(["data=text", f"data.path={tmp_path}/shakespear.txt"]))


def test_a_folder_with_a_run_is_not_run_in_again(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(BadInput, match="ckpt=last"):
        check_paths(compose([f"run_dir={tmp_path}"]))
    check_paths(compose([f"run_dir={tmp_path}", "ckpt=last"]))  # killed before its first checkpoint


def test_errors_go_to_stderr_without_a_traceback(capsys):
    assert train.main(["recipe=distil_qat"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("BadInput: recipe=distil_qat is unknown")
    assert "Traceback" not in shown.err + shown.out


def test_settings_of_callbacks_are_those_of_their_recipe_files():
    with pytest.raises(BadInput, match=r"callbacks\.a\.x: .*has no setting 'x'"):
        check_callback_settings(
            {"a": {"_target_": "compress.callbacks.NumberGuard", "x": 1}},
            recipes_folder() / "callbacks",
        )
