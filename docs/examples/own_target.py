"""Your own target: a runtime that serves 8-bit weights alone; its rules, and who writes for it."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.errors import UnsupportedScheme
from compress.export import rules
from compress.export.gate import RULES
from compress.export.vllm import write_compressed_tensors
from compress.export.write import WRITERS, export
from compress.quantize import prepare


def eight_bits_only(plan):
    """A rule looks at the plan and yields what the runtime cannot serve, with the way out."""
    odd = [x.name for x in plan.quantized if x.weights and x.weights.num_bits != 8]
    if odd:
        yield rules.Offence(
            reason="this runtime serves 8-bit weights alone",
            layers=tuple(odd),
            way_out="Use scheme=W8A16 or W8A8.",
        )


RULES["mine"] = (rules.groups_divide, eight_bits_only)
WRITERS["mine"] = write_compressed_tensors  # (student, plan, folder, *, dtype) -> weight files


def made(scheme):
    torch.manual_seed(0)
    student = LlamaForCausalLM(
        LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    )  # fmt: skip
    prepare(student, scheme=scheme, group_size=32)
    return student.eval()


print(export(made("W8A16"), target="mine", path=sys.argv[1]).entry())
try:
    export(made("W4A16"), target="mine", path=sys.argv[1])
except UnsupportedScheme as error:
    print(error)
