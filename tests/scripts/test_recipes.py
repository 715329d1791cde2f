"""Claims about the recipes: each says what it is for, composes, and is found by a wrong name."""

from pathlib import Path

import pytest

from compress.scripts.lib.config import compose, list_recipes
from compress.scripts.train import main

FOLDER = Path(__file__).parents[2] / "recipes" / "recipe"
NAMES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")
)
# what a recipe leaves to its user
GIVEN = {
    "teacher.path": "teacher.path=somewhere", "student.path": "student.path=somewhere",
    "data.path": "data.path=somewhere",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_opens_with_purpose_command_hardware_and_result(name):
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    opening = [line for line in lines[:9] if line.startswith("#")]
    purpose = next(line for line in opening if not line.startswith("# @"))
    assert purpose.startswith("# ") and purpose.rstrip().endswith(".")
    text = "\n".join(opening)
    assert f"scripts/train.py recipe={name}" in text and "Hardware:" in text
    assert "Expected:" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_composes(name):
    words = [f"recipe={name}"]
    for _ in range(3):
        try:
            config = compose(words)
            break
        except Exception as error:
            needed = [word for key, word in GIVEN.items() if f"{key} must be given" in str(error)]
            if not needed:
                raise
            words += needed
    for callback in config.callbacks.values():
        assert callback._target_.startswith("compress.callbacks.")


def test_every_recipe_is_listed_with_one_line(capsys):
    assert main(["recipe="]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in NAMES)
    assert len(listed.splitlines()) == len(list_recipes()) == len(NAMES)


def test_a_wrong_name_lists_them_all_and_says_which_was_meant(capsys):
    assert main(["recipe=distil_qat"]) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'distill_qat'?" in said and all(name in said for name in NAMES)
    purpose = list_recipes()["qat"]
    assert purpose in said


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_help_lists_the_recipes_too(words, capsys):
    assert main(words) == 0 and "distill_qat" in capsys.readouterr().out
