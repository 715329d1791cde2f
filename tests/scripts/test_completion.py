"""Claims about shell completion."""

import shutil
import subprocess

import pytest

from compress.scripts.lib.completion import BASH, candidates
from compress.scripts.train import main


def test_choices_of_a_group_complete():
    assert candidates("recipe=distill_q", []) == ["recipe=distill_qat"]
    assert "logger=wandb" in candidates("logger=", [])


def test_settings_of_the_chosen_recipe_complete():
    assert "callbacks.qat.scheme=" in candidates("callbacks.qat.sch", ["recipe=qat"])
    assert candidates("callbacks.logits.", ["recipe=qat"]) == []
    assert "trainer.max_steps=" in candidates("trainer.max", [])


def test_groups_complete_before_anything_is_typed():
    found = candidates("", [])
    assert "recipe=" in found and "seed=" in found and not any("_target_" in f for f in found)


def test_words_that_do_not_compose_complete_nothing_and_raise_nothing():
    assert candidates("callbacks.", ["recipe=nothing"]) == []


def test_the_command_answers_the_shell(capsys):
    assert main(["--complete", "recipe=distill_q"]) == 0
    assert capsys.readouterr().out == "recipe=distill_qat\n"
    assert main(["--completion"]) == 0 and capsys.readouterr().out == BASH


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_takes_the_function(tmp_path):
    command = tmp_path / "compress-train"
    command.write_text('#!/bin/sh\n[ "$1" = --complete ] && echo recipe=distill_qat\n')
    command.chmod(0o755)
    program = f"""{BASH}
COMP_WORDS=("{command}" recipe=dis); COMP_CWORD=1; compopt() {{ :; }}
_compress_train; echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "recipe=distill_qat"
