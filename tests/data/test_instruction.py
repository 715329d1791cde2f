import pytest

from compress.data import instruction
from compress.data.tokenizer import train_byte_bpe
from compress.errors import BadInput
from tests.data.texts import story, write_lines

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
SIZES = {"sequence_length": 48, "validation_share": 0.2, "test_share": 0}


def chat_tokenizer(template=TEMPLATE):
    tokenizer = train_byte_bpe([story(words=300)], vocab_size=300)
    tokenizer.chat_template = template
    return tokenizer


def pairs(count=30):
    return [{"prompt": f"ask {i}", "response": f"answer {i}"} for i in range(count)]


def learned(data, row):
    return data.tokenizer.decode(row["labels"][row["labels"] != -100])


def all_rows(data):
    return [*data.train, *data.validation]


def test_only_the_response_and_its_end_are_learned(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", pairs())
    data = instruction(path=path, vocab_size=300, cache_dir=tmp_path / "c", **SIZES)
    found = {learned(data, row) for row in all_rows(data)}
    assert found == {f"answer {i}<|endoftext|>" for i in range(30)}


def test_the_chat_template_writes_pairs(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", pairs())
    data = instruction(path=path, tokenizer=chat_tokenizer(), cache_dir=tmp_path / "c", **SIZES)
    row = all_rows(data)[0]
    text = data.tokenizer.decode(row["input_ids"][row["attention_mask"] == 1])
    assert text.startswith("[user]ask")
    assert learned(data, row) == text.split("[assistant]")[1]


def test_every_assistant_turn_of_a_chat_is_learned_and_nothing_else(tmp_path):
    chat = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    rows = [{"messages": [*chat[:1], {"role": "user", "content": str(i)}, *chat[2:]]}
            for i in range(20)]  # fmt: skip
    data = instruction(
        path=write_lines(tmp_path / "a.jsonl", rows), messages_column="messages",
        tokenizer=chat_tokenizer(), cache_dir=tmp_path / "c", **SIZES | {"sequence_length": 96},
    )  # fmt: skip
    assert {learned(data, r) for r in all_rows(data)} == {"two<|endoftext|>four<|endoftext|>"}


def test_padding_is_masked_and_not_learned(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", pairs())
    data = instruction(path=path, tokenizer=chat_tokenizer(), cache_dir=tmp_path / "c", **SIZES)
    row = data.train[0]
    padded = row["attention_mask"] == 0
    assert padded.any()
    assert (row["input_ids"][padded] == data.tokenizer.pad_token_id).all()
    assert (row["labels"][padded] == -100).all()


def test_what_does_not_fit_is_counted(tmp_path):
    long_prompts = [{"prompt": f"{i} " + "ask " * 90, "response": "never seen"} for i in range(5)]
    path = write_lines(tmp_path / "a.jsonl", pairs() + long_prompts)
    data = instruction(path=path, vocab_size=300, cache_dir=tmp_path / "c", **SIZES)
    counts = [data.counts[part] for part in ("train", "validation")]
    assert sum(c.get("no_answer_fits", 0) for c in counts) == 5
    assert sum(c["sequences"] for c in counts) == 30


def test_equal_prompts_share_a_part(tmp_path):
    rows = [{"prompt": f"ask {i // 3}", "response": f"answer {i}"} for i in range(60)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    data = instruction(path=path, vocab_size=300, cache_dir=tmp_path / "c", **SIZES)
    assert len(data.validation) % 3 == 0


def test_chats_need_a_chat_template(tmp_path):
    tokenizer = chat_tokenizer(template=None)
    with pytest.raises(BadInput, match="chat template, which this tokenizer lacks"):
        instruction(path=tmp_path, messages_column="messages", tokenizer=tokenizer)


@pytest.mark.parametrize("bad", ["text", [], [{"role": "user", "content": "x"}], [{"role": 1}]])
def test_a_chat_of_another_shape_is_told_with_its_row(tmp_path, bad):
    path = write_lines(tmp_path / "a.jsonl", [{"messages": bad}])
    with pytest.raises(BadInput, match=r"a\.jsonl, row 1: 'messages' must be a list"):
        instruction(
            path=path, messages_column="messages", tokenizer=chat_tokenizer(),
            cache_dir=tmp_path / "c", **SIZES,
        )  # fmt: skip


def test_a_template_that_refuses_a_chat_is_quoted(tmp_path):
    tokenizer = chat_tokenizer("{{ raise_exception('only poems') }}")
    path = write_lines(tmp_path / "a.jsonl", pairs())
    with pytest.raises(BadInput, match="only poems"):
        instruction(path=path, tokenizer=tokenizer, cache_dir=tmp_path / "c", **SIZES)
