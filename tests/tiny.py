"""Small real models and batches that tests share; everything is seeded."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 128


def tiny_llama(*, layers: int = 2, hidden: int = 32, seed: int = 0, **changes) -> LlamaForCausalLM:
    """A Llama with grouped heads whose every width divides by 32."""
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def tiny_batch(*, rows: int = 4, length: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens; every position but the last predicts the next."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (rows, length), generator=generator)
    return {"input_ids": tokens, "labels": tokens.clone()}


class TinyData(torch.utils.data.Dataset):
    """Counting sequences from random starts: a pattern that a tiny model learns in a few steps."""

    def __init__(self, *, rows: int = 64, length: int = 16, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(0, VOCAB, (rows, 1), generator=generator)
        self.tokens = (starts + torch.arange(length)) % VOCAB

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}
