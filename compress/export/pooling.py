"""How servers must pool a model without a head: the mean over tokens, as it was trained.

vLLM and sentence-transformers read it from `modules.json` and `1_Pooling/`; without them vLLM takes
the architecture's own, which of a BERT is the first token.
"""

import json
from pathlib import Path

from torch import nn

from compress.models import config_of

MODULES_FILE, POOLING_FOLDER = "modules.json", "1_Pooling"
MODES = (
    "cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens",
    "lasttoken",
)  # fmt: skip
"""Of sentence-transformers; one is on."""


def is_bare(student: nn.Module) -> bool:
    """Whether the model has no head: its answer is the last hidden states (`BertModel`)."""
    return getattr(student, "base_model", None) is student


def write_pooling(student: nn.Module, folder: Path) -> None:
    """`modules.json` and `1_Pooling/config.json` of a bare model; nothing for others.

    There is no `Normalize` entry: neither training nor evaluation scales an embedding.
    """
    if not is_bare(student):
        return
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate((("", "Transformer"), (POOLING_FOLDER, "Pooling")))
    ]
    modes = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in MODES}
    config = {"word_embedding_dimension": int(config_of(student).hidden_size), **modes}
    (folder / POOLING_FOLDER).mkdir()
    (folder / MODULES_FILE).write_text(json.dumps(modules, indent=2) + "\n")
    (folder / POOLING_FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n")
