"""Keys and passwords do not travel: masked in configurations, reports, logs and commands."""

import re
from collections.abc import Sequence
from typing import Any

MASK = "***"

NAMES = re.compile(
    r"(password|passwd|passphrase|secret|credential|api_?key)s?$"
    r"|(^|[_.-])(token|auth|authorization|bearer)$"
    r"|(^|[_-])key$|^keys$"
    r"|(access|api|auth|hf|private|refresh|secret)[_-](keys|tokens)$",
    re.I,
)
"""A setting of such a name holds a secret; `api_key_env` holds the name of one, which is none.

`tokens` and `missing_keys` hold none, and `attention.self.key` is a layer.
"""

PASSWORDS = re.compile(r"passw|passphrase|secret|credential|api_?key", re.I)
"""Below such a name a number is one too; `bytes_per_token` and the like hold figures."""

KEYS = re.compile(r"(^|[_.-])keys?$", re.I)
OWNED_KEYS = re.compile(r"(access|account|api|auth|private|secret)[_-]keys?$", re.I)
"""In a text a key is a dict's or a sort's, unless it says of what."""

SPECIAL_TOKENS = ("bos_", "eos_", "pad_", "unk_", "sep_", "cls_", "mask_")
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

TEXTS = (
    # user:password@ of an address
    (re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://)[^/\s@]+@", re.I), rf"\1{MASK}@"),
    # ?token=... of an address
    (
        re.compile(
            r"([?&](?:[\w-]*(?:key|token|secret|password|signature|sig|credential))=)[^&\s'\"]+",
            re.I,
        ),
        rf"\1{MASK}",
    ),
    # --api-key ... of a command
    (
        re.compile(
            r"(?<![\w-])(--(?:[\w-]{1,30}-)?(?:api-key|token|password|secret)\s+)[^\s'\"-]\S*"
        ),
        rf"\1{MASK}",
    ),
    # a header's value without the header's name
    (re.compile(r"(\bBearer\s+)(?=\S*[\d_.~+/=-])[\w.~+/=-]{8,}"), rf"\1{MASK}"),
    # keys that tell themselves by their first letters
    (
        re.compile(
            r"\b(?:sk-|hf_|ghp_|gho_|github_pat_|glpat-|xox[baprs]-|AKIA|ASIA|AIza)[A-Za-z0-9_-]{8,}"
        ),
        MASK,
    ),
)

SAID = re.compile(r"(?<![\w.-])(?P<name>[\w.-]+)(?P<quote>\\?['\"])?\s*(?P<sign>[=:])\s*")
VALUE = re.compile(
    r"[bru]?(?P<quote>\\?['\"])(?:(?!(?P=quote))(?:\\.|[^\\]))*(?P=quote)"
    r"|\[(?:[^\[\]]|\[[^\[\]]*\])*\]|\{(?:[^{}]|\{[^{}]*\})*\}|\([^()]*\)"
    r"|(?:(?:bearer|basic|digest|token)\s+)?[^\s,;&'\"]+",
    re.I,
)
FIGURES = re.compile(r"[-+\d.,e\s\[\](){}%]*|none|null|true|false", re.I)


def masked(value: Any) -> Any:
    """The same plain data without secrets; containers are copied.

    >>> masked({"api_key": "abc", "url": "https://me:pw@host/x?token=t", "layers": 3})
    {'api_key': '***', 'url': 'https://***@host/x?token=***', 'layers': 3}
    """
    if isinstance(value, dict):
        return {k: _hidden(v, str(k)) if is_secret(str(k)) else masked(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(one) for one in value]
    return masked_text(value) if isinstance(value, str) else value


def _hidden(value: Any, name: str) -> Any:
    """All that stands below a secret's name."""
    if isinstance(value, dict):
        return {k: _hidden(v, name) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(one, name) for one in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return MASK if PASSWORDS.search(name) else value
    return MASK if isinstance(value, str) and value else value


def is_secret(name: str) -> bool:
    """Whether what stands under this name is hidden.

    >>> [is_secret(n) for n in ("api_key", "AWSSecretAccessKey", "tokens", "api_key_env")]
    [True, True, False, False]
    """
    words = CAMEL.sub("_", name)
    special = words.rpartition(".")[2].startswith(SPECIAL_TOKENS)
    return bool(NAMES.search(words)) and not special


def masked_text(text: str) -> str:
    """The same text without what looks like a secret.

    >>> masked_text("train.py teacher.served.api_key=abc run_dir=x")
    'train.py teacher.served.api_key=*** run_dir=x'
    >>> masked_text("{'password': 'a b', 'tokens': [1, 2]}")
    "{'password': '***', 'tokens': [1, 2]}"
    """
    for pattern, instead in TEXTS:
        text = pattern.sub(instead, text)
    pieces, end = [], 0
    for said in SAID.finditer(text):
        if said.start() < end or not _may_tell(said):
            continue  # before its value is looked for, which may be long
        value = VALUE.match(text, said.end())
        if value is None or (FIGURES.fullmatch(value[0]) and not PASSWORDS.search(said["name"])):
            continue
        quote = value["quote"] or ""
        pieces += [text[end : said.end()], f"{quote}{MASK}{quote}"]
        end = value.end()
    return "".join([*pieces, text[end:]])


def _may_tell(said: re.Match[str]) -> bool:
    """Whether a text's `name=` or `'name':` stands before a secret."""
    name = CAMEL.sub("_", said["name"])
    if not is_secret(name):
        return False
    if said["quote"]:  # of a dict that was printed, whose names are settings
        return True
    if KEYS.search(name):
        return bool(OWNED_KEYS.search(name))
    return said["sign"] == "=" or name.lower() not in ("token", "auth", "bearer")


def masked_words(words: Sequence[str]) -> list[str]:
    """`key=value` words without secrets."""
    return [
        f"{word.partition('=')[0]}={MASK}"
        if "=" in word and is_secret(word.partition("=")[0].lstrip("+~"))
        else masked_text(word)
        for word in words
    ]
