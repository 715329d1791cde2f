"""The library without a trainer: quantise, train a few steps, export, read it back."""

import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from compress.export.write import export
from compress.parameter_groups import parameter_groups
from compress.quantize import prepare

student = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
)  # fmt: skip  (or any AutoModelForCausalLM.from_pretrained)
prepare(student, scheme="W4A16", group_size=32, exclude="*down_proj")
optimizer = torch.optim.AdamW(parameter_groups(student, 1e-3, 0.1))
for _ in range(20):
    tokens = (torch.randint(128, (8, 1)) + torch.arange(32)) % 128  # counting
    loss = student(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
result = export(
    student.eval(), target="vllm", path=sys.argv[1]
)  # reloaded and compared, or it raises
print(
    result.scheme, result.bytes, "bytes; logits differ by", result.verification.max_abs_logit_diff
)
AutoModelForCausalLM.from_pretrained(sys.argv[1]).generate(tokens[:1, :4], max_new_tokens=4)
