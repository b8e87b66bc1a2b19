"""SLO watch: which limits were kept by the server's own histograms, for how long not, and what would keep them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from models.workload import Metric, Slo, Statistic
from tuner.advise.expected import Model
from tuner.advise.finding import Finding, FindingKind
from tuner.scrape.observed import HISTOGRAMS, PERCENTILES, Observed
from tuner.scrape.samples import Buckets, ScrapeWindow

# Bisection over requests in flight: a server more or less is a twelfth of most fleets.
TRIES = 12
MOST_SERVERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SloWatch:
    """One limit over a window. `value_ms` is None where the histogram ends below the percentile.

    `within` is the share of requests (for TPOT before 0.5.23: of tokens) below the limit, `lost_minutes` the time
    in which it was missed, None without a window.
    """

    slo: Slo
    kept: bool | None
    value_ms: float | None
    within: float | None
    lost_minutes: float | None

    def document(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {"slo": str(self.slo), "kept": self.kept, "value_ms": self.value_ms, "within": self.within,
                "lost_minutes": self.lost_minutes}  # fmt: skip


def watch_slos(slos: tuple[Slo, ...], observed: Observed, window: ScrapeWindow) -> list[SloWatch]:
    """Return every limit against the histograms of a window."""
    return [_watch(slo, observed.spreads.get(str(slo.metric)), window) for slo in slos]


def _watch(slo: Slo, spread: Buckets | None, window: ScrapeWindow) -> SloWatch:
    if spread is None:
        return SloWatch(slo=slo, kept=None, value_ms=None, within=None, lost_minutes=None)
    value = _value_ms(slo, spread)
    lost = [
        (step.seconds or 0.0) / 60.0
        for step in window.steps()
        if (each := _spread(slo.metric, step)) is not None and _kept(slo, each) is False
    ]
    return SloWatch(
        slo=slo,
        kept=_kept(slo, spread),
        value_ms=value,
        within=spread.share_below(slo.limit_ms / 1e3),
        lost_minutes=round(sum(lost), 2) if window.before is not None else None,
    )


def _spread(metric: Metric, window: ScrapeWindow) -> Buckets | None:
    return next((spread for name in HISTOGRAMS[str(metric)] if (spread := window.spread(name)) is not None), None)


def _value_ms(slo: Slo, spread: Buckets) -> float | None:
    if slo.statistic is Statistic.MEAN:
        return spread.mean * 1e3
    value = spread.quantile(PERCENTILES[slo.statistic])
    return None if value is None else value * 1e3


def _kept(slo: Slo, spread: Buckets) -> bool | None:
    """Say whether a limit was kept; None where the buckets do not tell."""
    value = _value_ms(slo, spread)
    if value is not None:
        return value <= slo.limit_ms
    last = max((bound for bound in spread.bounds if bound < float("inf")), default=0.0)
    return False if spread.below and slo.limit_ms / 1e3 <= last else None  # beyond every bucket, or no buckets


def slo_findings(model: Model, watched: list[SloWatch], others: list[Finding]) -> list[Finding]:
    """Return a finding for the limits that were missed: what was found already, or more servers like it."""
    missed = [each for each in watched if each.kept is False]
    if not missed:
        return []
    text = "; ".join(
        f"{each.slo} missed: "
        + (f"{each.value_ms:,.0f} ms" if each.value_ms is not None else "beyond the last bucket")
        + (f", {each.within:.1%} within" if each.within is not None else "")
        + (f", {each.lost_minutes:g} min lost" if each.lost_minutes else "")
        for each in missed
    )
    slos = tuple(each.slo for each in missed)
    count = servers_for(model, slos)
    helps = others[0].change if others and others[0].gain_percent > 0 else ""
    if count is None:
        change = "no number of servers like it keeps this: a single request takes longer"
    elif count == 1:
        change = "as predicted one server keeps it: see the other findings for why this one does not"
    else:
        change = f"{count} servers like it in place of one, as predicted ({model.traffic.in_flight} requests in flight)"
    return [
        Finding(
            kind=FindingKind.SLO_MISSED,
            evidence=text,
            change=f"{helps}; else {change}" if helps else change,
            gain_percent=0.0,
        )
    ]


def servers_for(model: Model, slos: tuple[Slo, ...]) -> int | None:
    """Return how many servers like this one keep the limits under this traffic, as predicted; None where none do."""
    counts: tuple[int, ...] = (*range(1, TRIES), 16, 24, 32, 48, MOST_SERVERS)
    for count in counts:
        share = replace(model.traffic, in_flight=max(1, math.ceil(model.traffic.in_flight / count)))
        predicted = model.change(model.server.typed, share)
        if predicted is not None and all(slo.excess(predicted) <= 0 for slo in slos):
            return count
        if share.in_flight == 1:
            return None
    return None
