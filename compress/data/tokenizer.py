"""The tokenizer of a run: given, loaded by name, or trained here on the train part."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from compress.errors import BadInput

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
SMALLEST_VOCABULARY = 256 + 2


def train_byte_bpe(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in GPT-2): no text is unknown.

    Equal texts in equal order give an equal tokenizer.

    Args:
        texts: what it is trained on, read once.
        vocab_size: 258 knows the bytes, end of text and padding alone; a few thousand suit a
            megabyte of text, 32,000 and more a gigabyte.

    Raises:
        BadInput: `vocab_size` is below 258.
    """
    check_vocab_size(vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a vocabulary without room for every byte.

    Raises:
        BadInput: `vocab_size` is below 258.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise BadInput(
            f"vocab_size={vocab_size} has no room for 256 bytes, end of text and padding: "
            f"use {SMALLEST_VOCABULARY} or more"
        )


def load_tokenizer(
    tokenizer: PreTrainedTokenizerBase | str | None,
) -> Any | None:
    """The tokenizer that is meant: itself, or the one of a model's name or folder.

    Raises:
        BadInput: it cannot be loaded, or has no end-of-text token.
    """
    found: Any = _loaded(tokenizer) if isinstance(tokenizer, str) else tokenizer
    if found is not None and found.eos_token_id is None:
        raise BadInput(
            "the tokenizer has no eos_token, but documents are joined by it; "
            "set one: tokenizer.eos_token = '</s>'"
        )
    return found


def _loaded(where: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception as error:  # a damaged tokenizer.json raises whatever its parser likes
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise BadInput(f"no tokenizer at {where}: {reason}") from error


def tokenizer_digest(tokenizer: Any) -> str:
    """A hash of all that decides which ids a text gets, chat template and special tokens too."""
    special = sorted(tokenizer.special_tokens_map.items())
    ids = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    how = (tokenizer.truncation_side, tokenizer.split_special_tokens)
    facts = repr((_rules_of(tokenizer), special, ids, how, tokenizer.chat_template))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _rules_of(tokenizer: Any) -> str:
    """Vocabulary, merges and the like."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return repr(sorted(tokenizer.get_vocab().items()))
    # truncation and padding are only how it was called last
    rules = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    return json.dumps(rules)
