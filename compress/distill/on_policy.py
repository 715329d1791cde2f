"""Sequences that the student writes itself, to be scored by the teacher.

Legend: B sequences, P prompt positions, L positions, G generated positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.contract import IGNORED, Batch
from compress.errors import BadInput


def prompts_of(batch: Batch, *, prompt_tokens: int) -> tuple[Tensor, Tensor]:
    """Left-padded prompts (B, P) and their mask: what comes before a row's first answer.

    Args:
        batch: `labels` of -100 at the start of a row mark its prompt (instruction data); a row
            whose first token is a label already (plain text) gives its first `prompt_tokens`.
        prompt_tokens: longest prompt; of longer ones the last tokens are kept.

    >>> batch = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[5, 6, 7, 8]])}
    >>> prompts_of(batch, prompt_tokens=2)[0]
    tensor([[5, 6]])
    """
    tokens_BL, learned_BL = batch["input_ids"], batch["labels"] != IGNORED
    length = tokens_BL.shape[1]
    first_B = torch.where(learned_BL.any(1), learned_BL.float().argmax(1), length)
    # plain text: every token is a label, so a prompt of its own is cut off
    ends_B = torch.where(first_B == 0, prompt_tokens, first_B).clamp(max=length)
    width = int(min(prompt_tokens, int(ends_B.max())))
    places_BP = ends_B[:, None] - width + torch.arange(width, device=tokens_BL.device)
    prompts_BP = tokens_BL.gather(1, places_BP.clamp(min=0))
    return prompts_BP, (places_BP >= 0).long()


@torch.no_grad()
def continue_prompts(
    model: Any,
    prompts_BP: Tensor,
    mask_BP: Tensor,
    *,
    new_tokens: int,
    temperature: float,
    seed: int,
) -> dict[str, Tensor]:
    """A batch of prompts and the model's own continuations; only these are labels.

    Args:
        model: a Hugging Face causal LM; its training mode is left as it was.
        prompts_BP: left-padded; `mask_BP` is 1 where there is a token.
        mask_BP: see there.
        new_tokens: generated a row; rows that end earlier are padded.
        temperature: of sampling; 0.0 takes the likeliest token.
        seed: equal seeds draw equal tokens; the global random state is left as it was.

    Raises:
        BadInput: the model cannot generate.
    """
    if not hasattr(model, "generate"):
        raise BadInput(f"{type(model).__name__} cannot generate text: on-policy needs a causal LM")
    end = model.config.eos_token_id
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with _drawing(model, seed, prompts_BP.device):
        whole_BL = model.generate(
            input_ids=prompts_BP, attention_mask=mask_BP, max_new_tokens=new_tokens,
            pad_token_id=_first(end, 0), use_cache=True,
            **(sampling if temperature > 0 else {"do_sample": False}),
        )  # fmt: skip
    answers_BG = whole_BL[:, prompts_BP.shape[1] :]
    used_BG = _before_the_end(answers_BG, end)
    tokens_BL = torch.cat([prompts_BP, answers_BG], dim=1)
    mask_BL = torch.cat([mask_BP, used_BG.long()], dim=1)
    answers = answers_BG.masked_fill(~used_BG, IGNORED)
    labels_BL = torch.cat([torch.full_like(prompts_BP, IGNORED), answers], dim=1)
    return _without_left_padding(tokens_BL, mask_BL, labels_BL)


def _before_the_end(answers_BG: Tensor, end: Any) -> Tensor:
    """True up to and with the first end of text."""
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    stopped_BG = torch.isin(answers_BG, answers_BG.new_tensor(ends))
    return stopped_BG.long().cumsum(1) - stopped_BG.long() == 0


def _without_left_padding(tokens: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Rows moved left: models that count positions from the first token see their own."""
    length = tokens.shape[1]
    shift_B1 = mask.long().argmax(1, keepdim=True)
    places = (torch.arange(length, device=tokens.device) + shift_B1) % length
    return {
        "input_ids": tokens.gather(1, places),
        "attention_mask": mask.gather(1, places),
        "labels": labels.gather(1, places),
    }


def _first(token: Any, fallback: int) -> int:
    """One id of a setting that may be none, one or several."""
    if token is None:
        return fallback
    return int(token if isinstance(token, int) else token[0])


@contextmanager
def _drawing(model: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    devices = [device] if device.type == "cuda" else []
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield
    finally:
        for module, training in modes:
            module.training = training
