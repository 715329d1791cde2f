"""What each number and word of a configuration may be; told before anything heavy is imported."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compress.errors import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Limits:
    """An interval; an open end is not in it."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether `value` lies inside."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        """In words."""
        ends = []
        if self.low != -math.inf:
            ends.append(f"{'more than' if self.open_low else 'at least'} {self.low:g}")
        if self.high != math.inf:
            ends.append(f"{'less than' if self.open_high else 'at most'} {self.high:g}")
        return " and ".join(ends)


COUNT = Limits(low=1)
NOT_NEGATIVE = Limits(low=0)
POSITIVE = Limits(low=0, open_low=True)
SHARE = Limits(low=0, high=1)
SHARE_INSIDE = Limits(low=0, high=1, open_low=True, open_high=True)
SHARE_OF_SOME = Limits(low=0, high=1, open_low=True)
SEED = Limits(low=0, high=2**32 - 1)

NUMBERS: Mapping[str, Limits] = {
    "seed": SEED,
    "data.seed": SEED,
    "data.sequence_length": Limits(low=2),
    "data.vocab_size": Limits(low=258),
    "data.validation_share": Limits(low=0, high=1, open_low=True, open_high=True),
    "data.test_share": Limits(low=0, high=1, open_high=True),
    "data.max_bytes": COUNT,
    "data.max_rows": COUNT,
    "teacher.layers": COUNT,
    "teacher.max_steps": COUNT,
    "teacher.batch_size": COUNT,
    "teacher.learning_rate": POSITIVE,
    "teacher.warmup_steps": NOT_NEGATIVE,
    "teacher.seed": SEED,
    "student.layers": COUNT,
    "trainer.num_nodes": COUNT,
    "trainer.max_steps": NOT_NEGATIVE,
    "trainer.batch_size": COUNT,
    "trainer.accumulate": COUNT,
    "trainer.clip_norm": POSITIVE,
    "trainer.checkpoint_every": COUNT,
    "trainer.validate_every": COUNT,
    "trainer.validation_batches": COUNT,
    "trainer.workers": NOT_NEGATIVE,
    "trainer.patience": COUNT,
    "training.learning_rate": POSITIVE,
    "training.weight_decay": NOT_NEGATIVE,
    "training.warmup_steps": NOT_NEGATIVE,
    "training.final_share": SHARE,
    "training.label_weight": NOT_NEGATIVE,
    "training.beta2": Limits(low=0, high=1, open_high=True),
}

MAY_BE_NULL = (
    "data.max_bytes", "data.max_rows", "student.layers", "trainer.clip_norm", "trainer.patience",
)  # fmt: skip

WORDS: Mapping[str, tuple[str | None, ...]] = {
    "task": ("causal_lm", "classification", "embedding"),
    "purpose": ("size", "speed"),
    "export_dtype": ("float32", "bfloat16"),
    "teacher.dtype": ("auto", "bfloat16", "float16", "float32", None),
    "teacher.host": ("local", "deepspeed", "cached", "served"),
    "trainer.accelerator": ("cpu", "gpu", "cuda", "mps", "tpu", "auto"),
    "trainer.precision": (
        "auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true",
        "transformer-engine", "transformer-engine-float16",
    ),
}  # fmt: skip


def limit_problems(config: Any) -> Iterator[str]:
    """One line for each number outside its limits and each word that is none of the known."""
    for key, limits in NUMBERS.items():
        found, value = _look_up(config, key)
        if found and not (value is None and key in MAY_BE_NULL) and not _inside(value, limits):
            yield f"{key}={value}: must be {limits}"
    for key, known in WORDS.items():
        found, value = _look_up(config, key)
        if found and value not in known:
            listed = ", ".join("null" if word is None else word for word in known)
            near = did_you_mean(str(value), [word for word in known if word])
            yield f"{key}={value}: unknown.{near} There are: {listed}"


def _inside(value: Any, limits: Limits) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value in limits


def _look_up(config: Any, key: str) -> tuple[bool, Any]:
    node = config
    for part in key.split("."):
        if part not in node:
            return False, None
        node = node[part]
    return True, node
