"""Batches that a model cannot take are refused with the numbers, before it sees them."""

import lightning as L
import pytest
import torch

from compress.batches import check_batch
from compress.errors import BadInput
from compress.module import CompressionModule
from tests.tiny import VOCAB, tiny_batch, tiny_llama


@pytest.mark.parametrize("changes, said", [
    ({"input_ids": torch.full((2, 4), VOCAB)}, f"to {VOCAB}, the model's vocabulary has {VOCAB}"),
    ({"input_ids": torch.full((2, 4), -1)}, "from -1"),
    ({"labels": torch.full((2, 4), VOCAB + 5)}, "labels of a batch"),
    ({"input_ids": torch.zeros(2, 65, dtype=torch.long)}, "65 tokens, the model 64 positions"),
    ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, "is empty"),
    ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, "is empty"),
])  # fmt: skip
def test_what_a_model_cannot_take_is_refused(changes, said):
    with pytest.raises(BadInput, match=said):
        check_batch({**tiny_batch(rows=2, length=4), **changes}, tiny_llama())


def test_sound_batches_and_others_pass():
    check_batch(tiny_batch(length=64), tiny_llama())
    ignored = torch.full((2, 4), -100)
    check_batch({**tiny_batch(rows=2, length=4), "labels": ignored}, tiny_llama())
    check_batch({**tiny_batch(rows=2, length=4), "labels": torch.tensor([7, 9])}, tiny_llama())
    check_batch([torch.zeros(1)], tiny_llama())
    check_batch(tiny_batch(), torch.nn.Linear(2, 2))


def test_a_training_ends_before_the_model_sees_it():
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    rows = [{k: v[0] + VOCAB for k, v in tiny_batch(rows=1).items()}]
    with pytest.raises(BadInput, match="vocabulary"):
        trainer.fit(CompressionModule(student=tiny_llama()), torch.utils.data.DataLoader(rows))
