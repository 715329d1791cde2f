"""The embedded teacher: found by a key that names all that its weights depend on."""

from types import SimpleNamespace

import pytest
import torch

from compress.scripts.lib.build import embedded_key, train_embedded
from compress.scripts.lib.config import compose
from tests.tiny import TinyData

TEACHER = [
    "teacher.layers=1", "teacher.hidden=32", "teacher.max_steps=3", "teacher.batch_size=2",
    "verbose=false", "trainer.validate_every=1", "trainer.validation_batches=1",
]  # fmt: skip


class Words:
    """A tokenizer as far as a model's shape goes."""

    bos_token_id = eos_token_id = pad_token_id = 0

    def __len__(self):
        return 128


DATA = SimpleNamespace(
    train=TinyData(), validation=TinyData(rows=8), tokenizer=Words(), fingerprint="tiny"
)


def made(words, folder):
    config = compose([*TEACHER, *words])
    torch.manual_seed(len(words))  # what a run drew before must not matter
    model = train_embedded(config, DATA, metrics=folder / "metrics.jsonl")
    return embedded_key(config, DATA), model.state_dict()


@pytest.mark.parametrize(
    "of_the_student",
    ["training.warmup_steps=0", "training.weight_decay=9", "training.beta2=0.1",
     "training.label_weight=0.1", "training.final_share=1", "trainer.clip_norm=1e-3",
     "trainer.patience=1", "trainer.precision=64-true", "trainer.accumulate=2"],
)  # fmt: skip
def test_what_the_student_is_told_changes_no_weight_of_the_teacher(of_the_student, tmp_path):
    key, weights = made([], tmp_path)
    other_key, others = made([of_the_student], tmp_path)
    assert other_key == key
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("own", ["teacher.warmup_steps=0", "teacher.seed=1", "teacher.max_steps=2"])
def test_what_the_teacher_is_told_makes_another_one(own, tmp_path):
    key, weights = made([], tmp_path)
    other_key, others = made([own], tmp_path)
    assert other_key != key
    assert not all(torch.equal(weights[name], others[name]) for name in weights)
