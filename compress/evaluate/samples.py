"""Greedy continuations, for a reader of the report to look at."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from compress.errors import BadInput
from compress.evaluate.quality import evaluating


def sample_texts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int = 32
) -> list[str]:
    """What the model writes after each prompt, always its likeliest token.

    Args:
        model: a Hugging Face causal LM, dense or fake-quantised; left as it was.
        tokenizer: the model's own.
        prompts: none of them empty.
        max_new_tokens: stop there, or at end of text.

    Raises:
        BadInput: a prompt has no token.
    """
    device = next(model.parameters()).device
    texts = []
    # the weights stand still here: quantise each once, not once a token
    with evaluating(model), parametrize.cached():
        for prompt in prompts:
            tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            if not tokens:
                raise BadInput(f"the prompt {prompt!r} has no token to continue")
            written = model.generate(  # type: ignore[operator]
                input_ids=torch.tensor([tokens], device=device),
                attention_mask=torch.ones(1, len(tokens), dtype=torch.long, device=device),
                do_sample=False, num_beams=1, max_new_tokens=max_new_tokens,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            texts.append(tokenizer.decode(written[0, len(tokens) :], skip_special_tokens=True))
    return texts
