"""Finding: one thing that is worth changing, with what shows it and what the change is predicted to give."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from models.serving.estimate import Prediction

# Predicted gains below this are within what the model of one server can tell apart.
LEAST_GAIN = 0.04
# A first token that comes so much earlier is worth a change, even where long answers hide it in the whole.
LEAST_TTFT_GAIN, LEAST_TTFT_MS = 0.25, 40.0
# What a change may cost in the whole for that.
MOST_LOST = 0.02


class FindingKind(StrEnum):
    """What can be found."""

    GRAPHS_TOO_SMALL = "graphs_too_small"
    CHUNK_TOO_LARGE = "chunk_too_large"
    MTP_DOES_NOT_PAY = "mtp_does_not_pay"
    KV_FULL = "kv_full"
    SLOW_RANK = "slow_rank"
    MAX_RUNNING_TOO_LOW = "max_running_too_low"
    RADIX_CACHE_OFF = "radix_cache_off"
    RECV_INTERVAL_TOO_LONG = "recv_interval_too_long"
    EXPERTS_UNBALANCED = "experts_unbalanced"
    SLOWER_THAN_MODEL = "slower_than_model"
    SLOWER_THAN_ITS_LIKE = "slower_than_its_like"
    SLO_MISSED = "slo_missed"
    MORE_SERVERS = "more_servers"


class Weight(StrEnum):
    """`high`: a fifth or more is lost; `medium`: less; `low`: the gain hangs on what the server does not tell."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`gain_percent`: how much more the server would do at the same number of requests in flight, as predicted.

    That is also by how much faster a request is answered. `before` and `after` are launch lines, '' where the change
    is none of the launch. `ttft_percent` is by how much earlier the first token comes.
    """

    kind: FindingKind
    evidence: str
    change: str
    gain_percent: float
    server: str = ""
    before: str = ""
    after: str = ""
    ttft_percent: float | None = None
    assumed: str = ""

    @property
    def severity(self) -> Weight:
        if self.assumed:
            return Weight.LOW
        return Weight.HIGH if self.gain_percent >= 20.0 else Weight.MEDIUM

    def document(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "kind": str(self.kind), "severity": str(self.severity), "server": self.server, "evidence": self.evidence,
            "change": self.change, "gain_percent": round(self.gain_percent, 1), "ttft_percent": self.ttft_percent,
            "before": self.before, "after": self.after, "assumed": self.assumed or None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What one prediction has over another: output rate, and the first token's time saved; both as shares."""

    rate: float
    ttft: float
    ttft_ms: float

    @classmethod
    def of(cls, before: Prediction, after: Prediction) -> Gain:
        """Compare two predictions of the same traffic."""
        old, new = before.ttft_ms["mean"], after.ttft_ms["mean"]
        return cls(rate=after.output_tok_s / before.output_tok_s - 1.0, ttft=1.0 - new / old, ttft_ms=old - new)

    @property
    def worth_it(self) -> bool:
        """Whether the model can tell them apart."""
        sooner = self.ttft >= LEAST_TTFT_GAIN and self.ttft_ms >= LEAST_TTFT_MS
        return self.rate >= LEAST_GAIN or (sooner and self.rate >= -MOST_LOST)

    @property
    def percent(self) -> float:
        return 100.0 * max(0.0, self.rate)
