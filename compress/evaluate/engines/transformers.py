"""transformers itself: dense and compressed checkpoints, with its KV-cache."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import __version__

from compress.errors import BadInput
from compress.evaluate.engines import Engine, EngineSettings, OnToken
from compress.evaluate.models import open_model, pt2_file


class Transformers(Engine):
    """A model of transformers; quantised weights are unpacked: smaller files, no faster kernels."""

    name, cached = "transformers", True
    version = __version__

    def __init__(self, module: Any, *, generates: bool, device: str) -> None:
        """`module` is in eval mode."""
        self.module, self.generates, self.device = module, generates, device
        self.vocab_size = int(module.config.get_text_config().vocab_size)

    @torch.inference_mode()
    def forward(self, tokens_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Logits of every position or each sequence, or the last hidden states."""
        mask = torch.ones_like(tokens_BL) if mask_BL is None else mask_BL
        output = self.module(
            input_ids=tokens_BL.to(self.device), attention_mask=mask.to(self.device)
        )
        answer: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
        return answer.float().cpu()

    @torch.inference_mode()
    def generate(self, tokens_BL: Tensor, *, new_tokens: int, on_token: OnToken) -> Tensor:
        """Greedy continuations, one token a pass over the cache."""
        entering, cache, written = tokens_BL.to(self.device), None, []
        for _ in range(new_tokens):
            output = self.module(
                input_ids=entering, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache = output.past_key_values
            entering = output.logits[:, -1].argmax(-1, keepdim=True)
            written.append(entering.cpu())  # on a GPU this waits for the token
            on_token()
        return torch.cat(written, dim=1)


def load(path: Path, settings: EngineSettings) -> Engine:
    """A checkpoint folder.

    Raises:
        BadInput: there is none, it is damaged, or an option is unknown.
    """
    if settings.options:
        raise BadInput(f"engine=transformers knows no options: {', '.join(settings.options)}")
    if pt2_file(path) is not None:
        raise BadInput(f"{path} is an exported program: engine=eager or engine=inductor runs it")
    opened = open_model(path, device=settings.device, dtype=settings.dtype or "float32")
    if opened.kind == "onnx":
        raise BadInput(f"{path} is an ONNX file: engine=onnxruntime runs it")
    return Transformers(opened.module, generates=opened.task == "causal_lm", device=settings.device)
