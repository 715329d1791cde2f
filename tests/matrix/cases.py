"""Every combination that must work, generated: methods by pairs and all at once, times settings."""

import itertools
import random
from dataclasses import dataclass, field

METHODS = {
    "qat": {
        "W8A8": {"scheme": "W8A8"},
        "W8A8-static": {"scheme": "W8A8", "activations": "static"},
        "W8A16": {"scheme": "W8A16", "group_size": 32},
        "W4A16": {"scheme": "W4A16", "group_size": 32},
        "W4A16-delayed": {"scheme": "W4A16", "group_size": 32, "start_step": 2, "freeze_step": 5},
        "FP8": {"scheme": "FP8_DYNAMIC"},
        "NVFP4": {"scheme": "NVFP4"},
        "MXFP4": {"scheme": "MXFP4"},
    },
    "sparsity": {
        "static": {"growth": "none"},
        "set": {"growth": "random"},
        "rigl": {"growth": "gradient"},
        "sr-ste": {"growth": "magnitude", "decay": 2e-4},
        "top-kast": {"growth": "magnitude", "backward_density": 0.7},
        "ac-dc": {"growth": "phases"},
        "2:4": {"pattern": "2:4", "density": None, "growth": "magnitude"},
        "blocks": {"pattern": "8x8", "growth": "random"},
    },
    "pruning": {"ffn": {"ffn_density": 0.5, "round_to": 32, "block": 32}},
    "logits": {"kl": {}, "jensen-top-8": {"divergence": "reverse_kl", "top_k": 8}},
    "features": {"mse": {"pairs": {"model.layers.0": "model.layers.1"}}, "attention": {
        "pairs": {"model.layers.1": "model.layers.3"}, "loss": "cosine"}},
    "routing": {"full": {"capacities": {"full": 0.5}, "audit_share": 0.05}},
}  # fmt: skip
PRECISIONS = ("32-true", "bf16-mixed")
RANKS = (1, 2)
ACCUMULATIONS = (1, 3)


@dataclass(frozen=True)
class Case:
    """Which kind of each method, and under which settings of the trainer."""

    kinds: tuple[tuple[str, str], ...]
    precision: str
    ranks: int
    accumulate: int
    words: str = field(init=False, compare=False)

    def __post_init__(self):
        methods = "+".join(f"{method}:{kind}" for method, kind in self.kinds)
        words = f"{methods} {self.precision} ranks={self.ranks} accumulate={self.accumulate}"
        object.__setattr__(self, "words", words)


def combinations() -> list[tuple[tuple[str, str], ...]]:
    """Each kind alone, each pair of kinds of two methods, and all methods at once for each kind."""
    alone = [((method, kind),) for method, kinds in METHODS.items() for kind in kinds]
    pairs = [
        (a + b)
        for a, b in itertools.combinations(alone, 2)
        if a[0][0] != b[0][0]
    ]  # fmt: skip
    first = {method: next(iter(kinds)) for method, kinds in METHODS.items()}
    whole = [
        tuple((first | {method: kind}).items())
        for method, kinds in METHODS.items()
        for kind in kinds
    ]
    return [*alone, *pairs, *dict.fromkeys(whole)]


def all_cases() -> list[Case]:
    """The whole matrix."""
    return [
        Case(kinds, precision, ranks, accumulate)
        for kinds in combinations()
        for precision in PRECISIONS
        for ranks in RANKS
        for accumulate in ACCUMULATIONS
    ]


def sample(count: int, *, seed: int, ranks: int) -> list[Case]:
    """Some cases with so many ranks: always one with every method, the rest drawn."""
    cases = [case for case in all_cases() if case.ranks == ranks]
    whole = [case for case in cases if len(case.kinds) == len(METHODS)]
    draw = random.Random(seed)
    return [draw.choice(whole), *draw.sample(cases, count - 1)]
