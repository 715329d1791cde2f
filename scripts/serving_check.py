"""Load any export in vLLM and compare its log-probabilities with transformers'.

python scripts/serving_check.py model=runs/distill_qat/latest/export/vllm
    prompts="def main|import os"   texts, divided by |; random tokens where there is no tokenizer
    python=.venv-serve/bin/python  the environment with vLLM (`make test-serving` builds it)
    dtype=bfloat16                 what both compute in
    tokens=16                      length of the greedy continuations
    threshold=0.05                 largest mean |log-probability difference|, in nats
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.errors import BadInput, CompressError, did_you_mean

DEFAULTS = {
    "model": "",
    "prompts": "def main():|import os|class Point:|return self",
    "python": ".venv-serve/bin/python",
    "dtype": "bfloat16",
    "tokens": "16",
    "threshold": "0.05",
}


def settings_of(words: Sequence[str]) -> dict[str, str]:
    """The `key=value` words over the defaults.

    Raises:
        BadInput: a word of another form, an unknown key, or no model.
    """
    given = {}
    for word in words:
        key, found, value = word.partition("=")
        if not found or key not in DEFAULTS:
            hint = did_you_mean(key, list(DEFAULTS))
            raise BadInput(f"{word!r} is no setting.{hint} Settings: {', '.join(DEFAULTS)}")
        given[key] = value
    if not given.get("model"):
        raise BadInput("model=FOLDER must be given: the folder of an export")
    return {**DEFAULTS, **given}


def token_prompts(model: str, texts: Sequence[str]) -> tuple[Any, list[list[int]]]:
    """The tokenizer (None where the folder has none) and the prompts as token ids."""
    import torch

    if not (Path(model) / "tokenizer_config.json").exists():
        vocabulary = int(json.loads((Path(model) / "config.json").read_text())["vocab_size"])
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(0, vocabulary, (len(texts), 24), generator=generator)
        return None, drawn.tolist()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return tokenizer, [list(tokenizer(text)["input_ids"]) for text in texts]


def main(words: Sequence[str]) -> int:
    """Run the check and print its figures; 0 where vLLM agrees with transformers."""
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    settings = settings_of(words)
    model = settings["model"]
    if not (Path(model) / "config.json").is_file():
        raise BadInput(f"model={model}: no checkpoint folder (it has no config.json)")
    from compress.export.serving import check_serving

    texts = settings["prompts"].split("|")
    tokenizer, prompts = token_prompts(model, texts)
    check = check_serving(
        model,
        prompts=prompts,
        python=settings["python"],
        dtype=settings["dtype"],
        new_tokens=int(settings["tokens"]),
    )
    if tokenizer is not None:
        for text, tokens in zip(texts, check.generated, strict=True):
            print(f"{text!r} -> {tokenizer.decode(tokens)!r}")
    figures = {key: value for key, value in check.as_dict().items() if key != "generated"}
    agrees = check.mean_abs_diff <= float(settings["threshold"])
    print(json.dumps({"model": model, "agrees": agrees, **figures}))
    return 0 if agrees else 1


def cli() -> None:
    """Entry point: errors of the user's are printed without a traceback."""
    try:
        sys.exit(main(sys.argv[1:]))
    except CompressError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    cli()
