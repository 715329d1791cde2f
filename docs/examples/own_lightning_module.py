"""Your own LightningModule with two of the callbacks: the mixin adds their losses to yours."""

import lightning as L
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.callbacks import DynamicSparsity, QuantizationAwareTraining
from compress.models import trace_causal_lm
from compress.module import CompressionMixin
from compress.parameter_groups import parameter_groups


class Mine(CompressionMixin, L.LightningModule):
    """Owns `self.student`; all else is as in any LightningModule."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def training_step(self, batch, batch_idx):
        return self.compression_loss(batch, trace_causal_lm(self.student, batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(parameter_groups(self, 1e-3, 0.1))


class Counting(torch.utils.data.Dataset):
    """Rows of `input_ids` and `labels`, as from any tokenised data set."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        tokens = (index + torch.arange(32)) % 128
        return {"input_ids": tokens, "labels": tokens}


student = LlamaForCausalLM(
    LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2)
)  # fmt: skip
callbacks = [
    DynamicSparsity(density=0.5, start=0, stop=10, every=2),
    QuantizationAwareTraining(scheme="W8A8"),
]
trainer = L.Trainer(
    max_steps=20, accelerator="cpu", callbacks=callbacks, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(Mine(student), torch.utils.data.DataLoader(Counting(), batch_size=8, shuffle=True))
used = student.model.layers[0].mlp.up_proj.weight
print(f"{(used == 0).float().mean():.2f} of the weights are zero, the others on the int8 grid")
