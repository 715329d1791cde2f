"""Keys and passwords do not travel: masked in configurations, reports, logs and commands."""

import re
from collections.abc import Sequence
from typing import Any

MASK = "***"
NAMES = re.compile(
    r"(^|[_.-])(api_?key|key|token|secret|password|passwd|credentials?|authorization)s?$", re.I
)
"""A setting of such a name holds a secret; `api_key_env` holds the name of one, which is none."""

SPECIAL_TOKENS = ("bos_", "eos_", "pad_", "unk_", "sep_", "cls_", "mask_")

TEXTS = (
    # user:password@ of an address
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.I), rf"\1{MASK}@"),
    # ?token=... of an address
    (
        re.compile(
            r"([?&](?:[\w-]*(?:key|token|secret|password|signature|sig|credential))=)[^&\s'\"]+",
            re.I,
        ),
        rf"\1{MASK}",
    ),
    # api_key=... in a command or a message
    (
        re.compile(
            r"(\b[\w.-]*(?:api_?key|[a-z]_token|\btoken(?==)|secret|password|passwd|credentials?"
            r"|authorization)\s*[=:]\s*)(?!\*\*\*)(?:bearer\s+)?[^\s,;&'\"]+",
            re.I,
        ),
        rf"\1{MASK}",
    ),
    # keys that tell themselves by their first letters
    (re.compile(r"\b(?:sk-|hf_|ghp_|gho_|github_pat_|xox[baprs]-|AKIA)[A-Za-z0-9_-]{8,}"), MASK),
)


def masked(value: Any) -> Any:
    """The same plain data without secrets; containers are copied.

    >>> masked({"api_key": "abc", "url": "https://me:pw@host/x?token=t", "layers": 3})
    {'api_key': '***', 'url': 'https://***@host/x?token=***', 'layers': 3}
    """
    if isinstance(value, dict):
        return {k: MASK if _is_secret(k, v) else masked(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(one) for one in value]
    return masked_text(value) if isinstance(value, str) else value


def _is_secret(key: Any, value: Any) -> bool:
    special = str(key).startswith(SPECIAL_TOKENS)
    return isinstance(value, str) and bool(value) and bool(NAMES.search(str(key))) and not special


def masked_text(text: str) -> str:
    """The same text without what looks like a secret.

    >>> masked_text("train.py teacher.served.api_key=abc run_dir=x")
    'train.py teacher.served.api_key=*** run_dir=x'
    """
    for pattern, instead in TEXTS:
        text = pattern.sub(instead, text)
    return text


def masked_words(words: Sequence[str]) -> list[str]:
    """`key=value` words without secrets."""
    return [
        f"{word.partition('=')[0]}={MASK}"
        if NAMES.search(word.partition("=")[0]) and "=" in word
        else masked_text(word)
        for word in words
    ]
