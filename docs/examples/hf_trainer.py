"""The Hugging Face Trainer with the same callbacks, from training to the exported folder."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from compress.callbacks import LogitsDistillation, QuantizationAwareTraining
from compress.export.write import export
from compress.integrations.transformers import CompressionTrainer
from compress.teachers.local import LocalTeacher


def llama(layers):
    """Stands for AutoModelForCausalLM.from_pretrained."""
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_attention_heads=4,
                    num_key_value_heads=2, num_hidden_layers=layers, tie_word_embeddings=False)
    )  # fmt: skip


rows = [
    {"input_ids": row.tolist(), "labels": row.tolist()}
    for row in (torch.arange(64)[:, None] + torch.arange(32)) % 128
]
trainer = CompressionTrainer(
    llama(layers=2),
    args=TrainingArguments(
        output_dir=sys.argv[1],
        max_steps=20,
        save_steps=10,
        logging_steps=10,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    ),
    train_dataset=rows,
    compression=[QuantizationAwareTraining(scheme="W8A8"), LogitsDistillation(temperature=2.0)],
    teacher=LocalTeacher(llama(layers=4)),
    label_weight=0.5,
)
trainer.train()  # trainer.train(resume_from_checkpoint=True) goes on exactly
print(export(trainer.model.eval(), target="vllm", path=f"{sys.argv[1]}/export").entry())
