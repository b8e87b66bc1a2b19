"""Candidates of a plan: what each is and delivers, why the others rank lower, and the families that cannot run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.config import ServerConfig
from models.costs.memory import MemoryLedger
from models.serving.estimate import LIMIT_NAMES, Prediction
from models.workload import ALL_AT_ONCE


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillSide:
    """The servers that prefill for a candidate's, which only decode then; `hardware` where it is another."""

    config: ServerConfig
    servers: int
    hardware: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A configuration that runs, what it delivers, its memory, and why it is not the best (or is).

    `prediction` and `ledger` are those of one server; `servers` of them share the load. Where clients do not divide,
    `load_share` is what of `servers` full loads there is. With `prefill` the servers only decode; latencies are then
    those of the whole fleet.
    """

    config: ServerConfig
    prediction: Prediction
    ledger: MemoryLedger
    misses: tuple[str, ...] = ()
    why: str = ""
    servers: int = 1
    load_share: float = 1.0
    prefill: PrefillSide | None = None

    @property
    def gpus(self) -> int:
        """GPUs of all servers."""
        prefill = 0 if self.prefill is None else self.prefill.servers * self.prefill.config.gpu_count
        return self.servers * self.config.gpu_count + prefill

    @property
    def output_tok_s(self) -> float:
        """Output tokens per second of all servers together."""
        return self.servers * self.load_share * self.prediction.output_tok_s

    @property
    def name(self) -> str:
        """The deployment in short: "TP8 DP8 MTP2", "4 x TP8 DP8 MTP2", "1P TP8 + 3D TP8 DP8"."""
        if self.prefill is not None:
            return f"{self.prefill.servers}P {self.prefill.config.label} + {self.servers}D {self.config.label}"
        return self.config.label if self.servers == 1 else f"{self.servers} x {self.config.label}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A family that cannot run: the rule or number it failed."""

    config: ServerConfig
    reason: str
    kind: str
    shortage_gib: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Candidates best first, rejected families, and how many configurations were evaluated."""

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    evaluated: int

    def rejected_by_reason(self) -> dict[str, int]:
        return dict(Counter(item.kind for item in self.rejected).most_common())


def with_reasons(ordered: Sequence[Candidate]) -> list[Candidate]:
    if not ordered:
        return []
    best = ordered[0]
    return [replace(best, why=_why_best(best)), *(replace(c, why=_why_lost(best, c)) for c in ordered[1:])]


def _why_best(best: Candidate) -> str:
    if best.misses:
        return "nearest to the target: " + "; ".join(best.misses)
    return f"limited by {best.prediction.limiting}"


def _why_lost(best: Candidate, other: Candidate) -> str:
    """Say in one phrase what the winner does better: an SLO, more requests at once, or a cheaper step."""
    if other.misses and not best.misses:
        return "; ".join(other.misses)
    mine, theirs = other.prediction, best.prediction
    behind = 100.0 * (other.output_tok_s / best.output_tok_s - 1.0)
    if other.servers != best.servers or other.prefill != best.prefill:
        return f"{behind:+.0f} %: {other.output_tok_s:,.0f} tok/s in all, {best.name} {best.output_tok_s:,.0f}"
    if mine.running_requests < ALL_AT_ONCE * theirs.running_requests:
        return (
            f"{behind:+.0f} %: {mine.running_requests:,.0f} requests run at once ({mine.limiting}), "
            f"not {theirs.running_requests:,.0f}"
        )
    decode_mine, decode_theirs = mine.step_ms / mine.accepted_tokens, theirs.step_ms / theirs.accepted_tokens
    if mine.stall_ms - theirs.stall_ms > decode_mine - decode_theirs:
        return f"{behind:+.0f} %: prefill stalls {mine.stall_ms:.1f} ms per token against {theirs.stall_ms:.1f}"
    if mine.accepted_tokens < theirs.accepted_tokens and mine.step_ms < theirs.step_ms:
        return (
            f"{behind:+.0f} %: {decode_mine:.1f} ms per token against {decode_theirs:.1f}: "
            f"a step of {mine.step_ms:.1f} ms yields {mine.accepted_tokens:.2f} tokens, "
            f"not {theirs.accepted_tokens:.2f}"
        )
    extra = {name: ms - theirs.breakdown_ms[name] for name, ms in mine.breakdown_ms.items()}
    worst = max(extra, key=lambda name: extra[name])
    return (
        f"{behind:+.0f} %: step {mine.step_ms:.1f} ms against {theirs.step_ms:.1f}, most of it "
        f"{LIMIT_NAMES[worst]} ({extra[worst]:+.1f} ms)"
    )
