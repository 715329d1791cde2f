"""From the moments at which tokens came to latencies, throughput and cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.errors import BadInput

PERCENTILES = {"p50": 50, "p95": 95, "p99": 99}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One job as it was served; seconds from the start of its run.

    Args:
        arrival: when it was asked.
        moments: when each of its tokens was there; one moment where a pass is the whole answer.
        sequences: computed together.
        prompt_tokens: of each sequence.
        written: tokens written for each sequence; 0 where a pass is the whole answer.
    """

    arrival: float
    moments: tuple[float, ...]
    sequences: int
    prompt_tokens: int
    written: int

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.moments[0] - self.arrival

    @property
    def latency(self) -> float:
        """Seconds to the last token."""
        return self.moments[-1] - self.arrival

    @property
    def per_token(self) -> float | None:
        """Mean seconds between tokens after the first; None with fewer than two."""
        if len(self.moments) < 2:
            return None
        return (self.moments[-1] - self.moments[0]) / (len(self.moments) - 1)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles in milliseconds; empty where there is nothing.

    >>> spread([0.001, 0.003])["mean"]
    2.0
    """
    if not seconds:
        return {}
    milliseconds = np.asarray(seconds) * 1e3
    found = {name: float(np.percentile(milliseconds, q)) for name, q in PERCENTILES.items()}
    return {"mean": float(milliseconds.mean()), **found}


def summarise(records: Sequence[Record], *, price_per_hour: float | None = None) -> dict[str, Any]:
    """Latencies in milliseconds, throughput, and dollars a million tokens.

    Tokens are those written; where nothing is written, those read. The time counted is from the
    first arrival to the last token.

    Raises:
        BadInput: there is no record.
    """
    if not records:
        raise BadInput("no request was served: there is nothing to summarise")
    seconds = max(r.moments[-1] for r in records) - min(r.arrival for r in records)
    sequences = sum(r.sequences for r in records)
    tokens = sum(r.sequences * (r.written or r.prompt_tokens) for r in records)
    rate = tokens / seconds
    return {
        "requests": sequences,
        "first_token_ms": spread([r.first for r in records]),
        "per_token_ms": spread([r.per_token for r in records if r.per_token is not None]),
        "latency_ms": spread([r.latency for r in records]),
        "tokens_per_second": rate,
        "requests_per_second": sequences / seconds,
        "dollars_per_million_tokens": dollars_per_million(rate, price_per_hour),
    }


def dollars_per_million(tokens_per_second: float, price_per_hour: float | None) -> float | None:
    """What a million tokens cost on a machine of this price, kept busy; None without a price.

    >>> dollars_per_million(1000.0, 3.6)
    1.0
    """
    if price_per_hour is None:
        return None
    if price_per_hour < 0 or not math.isfinite(price_per_hour):
        raise BadInput(f"price_per_hour={price_per_hour}: must be 0 or more")
    return price_per_hour / 3600 / tokens_per_second * 1e6
