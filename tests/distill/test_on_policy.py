import torch

from compress.distill.on_policy import continue_prompts, prompts_of
from tests.tiny import tiny_batch, tiny_llama

I = -100  # noqa: E741


def test_prompts_of_plain_text_are_its_first_tokens():
    batch = tiny_batch(rows=2, length=8)
    prompts, mask = prompts_of(batch, prompt_tokens=3)
    assert prompts.equal(batch["input_ids"][:, :3]) and mask.all()


def test_prompts_of_instructions_end_where_the_answer_begins():
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    labels = torch.tensor([[I, I, 3, 4, 5, 6], [I, I, I, I, 5, 6]])
    prompts, mask = prompts_of({"input_ids": tokens, "labels": labels}, prompt_tokens=3)
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    assert prompts[0, 1:].tolist() == [1, 2] and prompts[1].tolist() == [2, 3, 4]


def written(model, *, seed=0, temperature=1.0):
    prompts = torch.tensor([[9, 9, 3], [5, 6, 7]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    return continue_prompts(model, prompts, mask, new_tokens=4, temperature=temperature, seed=seed)


def test_rows_start_with_their_prompt_and_only_what_is_written_is_a_label():
    batch = written(tiny_llama(eos_token_id=None))
    assert batch["input_ids"][0, 0] == 3 and batch["input_ids"][1, :3].tolist() == [5, 6, 7]
    assert batch["attention_mask"].sum(1).tolist() == [5, 7]
    assert (batch["labels"] != I).sum(1).tolist() == [4, 4]
    learned = batch["labels"] != I
    assert batch["labels"][learned].equal(batch["input_ids"][learned])
    assert not learned[0, 0] and not learned[1, :3].any()


def test_equal_seeds_write_equal_texts_and_leave_the_random_state_alone():
    model = tiny_llama(eos_token_id=None)
    before = torch.get_rng_state()
    first, again, other = (written(model, seed=s)["input_ids"] for s in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)
    assert torch.get_rng_state().equal(before) and model.training


def test_without_temperature_the_likeliest_token_is_written():
    model = tiny_llama(eos_token_id=None)
    batch = written(model, temperature=0.0)
    row = batch["input_ids"][1:2]
    with torch.no_grad():
        likeliest = model(input_ids=row).logits.argmax(-1)
    assert row[0, 3:].equal(likeliest[0, 2:-1])


def test_what_comes_after_the_end_is_no_label():
    model = tiny_llama(eos_token_id=None)
    greedy = written(model, temperature=0.0)["input_ids"][1]
    model.config.eos_token_id = int(greedy[4])
    model.generation_config.eos_token_id = int(greedy[4])
    batch = written(model, temperature=0.0)
    end = batch["input_ids"][1].tolist().index(int(greedy[4]), 3)
    assert batch["labels"][1, end] == greedy[4]
    assert (batch["labels"][1, end + 1 :] == I).all()
    assert batch["attention_mask"][1, end + 1 :].sum() == 0
