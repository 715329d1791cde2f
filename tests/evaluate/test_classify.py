"""Multiple choice by the loss of each answer, also where no prompt precedes it."""

import pytest

from compress.errors import BadInput
from compress.evaluate.classify import Question, _choice_loss, choice_accuracy
from tests.tiny import tiny_llama


class Letters:
    """A token a letter; which special tokens there are is told."""

    def __init__(self, *, bos=None, eos=None, pad=None):
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos, eos, pad

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(letter) % 128 for letter in text]}


def correct(prompt, tokenizer):
    model = tiny_llama().eval()
    pairs = [Question(prompt=prompt, choices=("ab", "xyz"), answer=a) for a in (0, 1)]
    return choice_accuracy(model, tokenizer, pairs).correct


def test_one_of_two_answers_is_chosen():
    assert sorted(correct("c", Letters())) == [0.0, 1.0]


def test_a_first_special_token_of_number_zero_counts():
    # the same as a prompt of the letter with that number, not as one of the end's
    model = tiny_llama().eval()
    losses = [_choice_loss(model, t, p, "ab") for t, p in (
        (Letters(bos=0, eos=5), ""), (Letters(), "\0"), (Letters(), "\5"),
    )]  # fmt: skip
    assert losses[0] == losses[1] != losses[2]


def test_a_question_without_a_prompt_needs_a_token_to_begin_with():
    with pytest.raises(BadInput, match="give the question a prompt"):
        correct("", Letters())
