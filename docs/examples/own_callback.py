"""Your own callback: a loss term, its schedule, its place in the checkpoint, in twenty lines."""

import lightning as L
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.callbacks import CompressionCallback, QuantizationAwareTraining
from compress.module import CompressionModule
from compress.schedule import linear
from compress.transforms import trained_weight, transformed_layers


class PullToZero(CompressionCallback):
    """Adds a growing L1 penalty on every compressed layer's trained weight.

    Args:
        weight: factor of the mean absolute weight once `stop` is reached; 0.0 is off.
        stop: optimizer step at which the factor is reached, from zero at the start.
        name: tells two of these apart.
    """

    def __init__(self, *, weight: float = 0.1, stop: int = 10, name: str = ""):
        super().__init__(name=name)
        self.weight, self.stop = weight, stop

    def attach(self, student):
        self.student = student

    def losses(self, step):
        factor = linear(step.number, start=0, stop=self.stop, first=0.0, last=self.weight)
        layers = [trained_weight(layer) for _, layer in transformed_layers(self.student)]
        yield self.name or "l1", factor * sum(w.abs().mean() for w in layers)


class Counting(torch.utils.data.Dataset):
    """Rows of `input_ids` and `labels`."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        tokens = (index + torch.arange(32)) % 128
        return {"input_ids": tokens, "labels": tokens}


student = LlamaForCausalLM(
    LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
)  # fmt: skip
trainer = L.Trainer(
    max_steps=20, accelerator="cpu", callbacks=[QuantizationAwareTraining(), PullToZero()],
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(
    CompressionModule(student=student), torch.utils.data.DataLoader(Counting(), batch_size=8)
)
print({name: round(float(v), 4) for name, v in trainer.callback_metrics.items()})
