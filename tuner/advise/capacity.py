"""Capacity: whether this server can serve what comes, how many it takes, and by when at the growth seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tuner.advise.expected import Model
from tuner.advise.finding import Finding, FindingKind
from tuner.advise.settings import queued
from tuner.scrape.observed import Observed
from tuner.scrape.samples import ScrapeWindow

# Growth is read from a window of at least so long, in thirds; and told where the limit is nearer than that.
LEAST_HOURS, SOON_DAYS = 2.0, 30.0
LEAST_GROWTH = 0.05
# A queue this share of what runs is more than waves.
STANDING = 0.25
ENOUGH = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Requests a second the server can answer as predicted, what it answers, and the growth a day, if seen."""

    most_per_s: float
    now_per_s: float | None
    growth_per_day: float | None

    @property
    def full_in_days(self) -> float | None:
        """When the rate reaches the most, None without growth or where it has."""
        if not self.growth_per_day or self.now_per_s is None or self.now_per_s >= self.most_per_s:
            return None
        return (self.most_per_s - self.now_per_s) / self.growth_per_day

    def document(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {"most_requests_per_s": self.most_per_s, "requests_per_s": self.now_per_s,
                "growth_per_day": self.growth_per_day, "full_in_days": self.full_in_days}  # fmt: skip


def capacity_of(model: Model, observed: Observed, window: ScrapeWindow) -> Capacity:
    """Return the most this server answers, by the model of it with as many requests as it can run."""
    most = runnable(model)
    crowded = model.change(model.server.typed, replace(model.traffic, in_flight=most)) or model.base
    return Capacity(
        most_per_s=max(crowded.request_rate, model.base.request_rate),
        now_per_s=observed.request_rate,
        growth_per_day=growth_per_day(window),
    )


def runnable(model: Model) -> int:
    """Return how many requests of this traffic run at once."""
    cap = model.server.config.max_running_requests or 1
    room = int(model.server.kv_tokens / (model.traffic.isl.mean + 0.55 * model.traffic.osl.mean))
    return max(1, min(cap, room, 2048))


def growth_per_day(window: ScrapeWindow) -> float | None:
    """Return by how many requests a second the rate grows in a day: the last third of a window against the first."""
    steps = [step for step in window.steps() if step.seconds]
    hours = (window.seconds or 0.0) / 3600.0
    if hours < LEAST_HOURS or len(steps) < 6:
        return None
    third = len(steps) // 3

    def rate(part: list[ScrapeWindow]) -> float:
        requests = sum(step.increase("num_requests_total") or 0.0 for step in part)
        return requests / sum(step.seconds or 0.0 for step in part)

    first, last = rate(steps[:third]), rate(steps[-third:])
    if not first or last < (1.0 + LEAST_GROWTH) * first:
        return None
    return (last - first) / (hours * 2.0 / 3.0) * 24.0


def capacity_findings(model: Model, observed: Observed, capacity: Capacity, others: list[Finding]) -> list[Finding]:
    """Return that more servers are needed, where no change of this one would do."""
    helped = max((each.gain_percent for each in others), default=0.0) >= ENOUGH
    waiting, running = observed.waiting or 0.0, observed.running or 0.0
    if queued(observed) and waiting >= STANDING * running and running >= 0.7 * runnable(model) and not helped:
        count = -(-model.traffic.in_flight // runnable(model))
        if count > 1:
            share = replace(model.traffic, in_flight=-(-model.traffic.in_flight // count))
            each = model.change(model.server.typed, share)
            more = 0.0 if each is None else 100.0 * (count * each.output_tok_s / model.base.output_tok_s - 1.0)
            return [
                Finding(
                    kind=FindingKind.MORE_SERVERS,
                    evidence=f"{running:.0f} requests run, as many as fit, and {waiting:.0f} wait; no setting tried "
                    "makes room for them",
                    change=f"{count} servers like it behind a router: at most {runnable(model)} of these requests run "
                    "on each",
                    gain_percent=more,
                )
            ]
    days = capacity.full_in_days
    if days is not None and days <= SOON_DAYS:
        return [
            Finding(
                kind=FindingKind.MORE_SERVERS,
                evidence=f"{capacity.now_per_s:.2f} requests/s and {capacity.growth_per_day:+.2f} a day; one server "
                f"answers {capacity.most_per_s:.2f}",
                change=f"a second server within {days:.0f} days at this growth",
                gain_percent=0.0,
            )
        ]
    return []
