"""What every data source answers: three parts, the tokenizer they were made with, and a name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compress.errors import BadInput

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Tokenised data of one run.

    Args:
        tokenizer: a `PreTrainedTokenizerFast`; saves into an export as it is.
        train: a torch-format `datasets.Dataset` with `input_ids` and `labels` of one length
            (-100 where nothing is learned), and `attention_mask` where there is padding.
            Classification: `labels` is one number a row.
        validation: the held-out part that every reported loss is measured on.
        test: a second held-out part, for one final look.
        fingerprint: hash of content, split, tokenizer and settings: the same on every machine.
        source: what the data is, in words, for reports and model cards.
        counts: per part: documents, sequences, tokens; and what was skipped.
        labels: names of the classes, in the order of their numbers; empty for language models.
    """

    tokenizer: Any
    train: Any
    validation: Any
    test: Any
    fingerprint: str
    source: str
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def sequence_length(self) -> int:
        """Tokens of every row."""
        return len(self.train[0]["input_ids"])

    def check_model(self, config: Any) -> None:
        """Refuse a model that cannot take these token ids or this length.

        Args:
            config: the model's text configuration.

        Raises:
            BadInput: its vocabulary or its positions are too few; lists every problem.
        """
        problems = []
        if len(self.tokenizer) > config.vocab_size:
            problems.append(
                f"the tokenizer has {len(self.tokenizer)} tokens, the model's vocabulary "
                f"{config.vocab_size}: use the model's own tokenizer, or resize its embeddings"
            )
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and self.sequence_length > positions:
            problems.append(
                f"sequences have {self.sequence_length} tokens, the model {positions} positions: "
                f"data.sequence_length={positions}"
            )
        if problems:
            raise BadInput("; ".join(problems))
