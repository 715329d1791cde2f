"""`plan.py sensitivity`: a plan within the budget, a picture, and refusals in words."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from compress.scripts.lib import plan_sensitivity
from compress.scripts.lib.plan_sensitivity import main
from tests.tiny import VOCAB, tiny_llama


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    (tmp_path / "text.txt").write_text(" ".join(f"w{i % VOCAB}" for i in range(2000)))
    return folder


def run(model, *words):
    given = [
        f"model={model}",
        f"text={model.parent / 'text.txt'}",
        "samples=2",
        "length=16",
        *words,
    ]
    return main(given)


def test_a_plan_within_the_budget_is_written_and_drawn(model, tmp_path, capsys):
    out, plot = tmp_path / "plan.json", tmp_path / "plan.svg"
    assert run(model, "budget_bits=4", f"out={out}", f"plot={plot}") == 0
    found = json.loads(out.read_text())
    assert found["plan"]["bits"] <= 4
    assert len(found["plan"]["overrides"]) == 14
    assert plot.read_text().startswith("<svg xmlns")
    assert "callbacks.qat.overrides=" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["budget_bits=4", "budget_mb=3"], "budget_bits=4 and budget_mb=3: give one"),
        (["budget_bits=4,5"], "budget_bits=4,5: a number above 0 is expected"),
        (["budget_mb=[3]"], "budget_mb=[3]: a number above 0 is expected"),
        (["budget_bits=nan"], "budget_bits=nan: a number above 0 is expected"),
        (["schemes=[W4A16,W8A16"], "schemes=[W4A16,W8A16: a list, such as [a,b], is expected"),
    ],
)
def test_budgets_are_judged_before_anything_is_measured(model, words, said, monkeypatch, capsys):
    monkeypatch.setattr(plan_sensitivity, "run", lambda _: pytest.fail("it was measured"))
    assert run(model, *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["budget_bits=1"], "the smallest plan has 3.000 bits"),
        (["budget_mb=0.001"], "what stays dense"),
        (["length=5000"], "fewer than length=5000 tokens"),
        (["schemes=[W5A16]"], "W5A16"),
    ],
)
def test_what_cannot_be_planned_is_refused(model, words, said, capsys):
    assert run(model, *words) == 2
    assert said in capsys.readouterr().err
