"""Claims about configuration: errors are found at once, and name the way out."""

import pytest

from compress.errors import BadInput
from compress.schedule import cubic, linear
from compress.scripts.lib.config import check_targets, list_recipes
from compress.students import evenly_spaced
from compress.targets import as_patterns, matches


def test_every_recipe_opens_with_its_purpose():
    assert list_recipes()
    assert all(list_recipes().values())


def test_a_target_outside_the_allow_list_is_refused():
    with pytest.raises(BadInput, match=r"os\.system"):
        check_targets({"evil": {"_target_": "os.system"}}, [])


def test_a_trusted_module_is_allowed():
    check_targets({"mine": {"_target_": "mine.Callback"}}, ["mine"])


def test_evenly_spaced_keeps_first_and_last():
    assert evenly_spaced(3, of=6)[0] == 0
    assert evenly_spaced(3, of=6)[-1] == 5


def test_schedules_reach_their_ends():
    assert cubic(100, start=0, stop=100, first=1.0, last=0.2) == 0.2
    assert linear(0, start=0, stop=10, first=1.0, last=0.0) == 1.0


def test_patterns_choose_by_name():
    assert matches("model.layers.3.mlp.down_proj", as_patterns("*down_proj, *up_proj"))
    assert not matches("model.layers.3.mlp.gate_proj", as_patterns("*down_proj"))
