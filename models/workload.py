"""Workload: how long requests are and how many come; Slo: what a user will not accept."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from hwprobe.bounds import REQUESTS, within
from hwprobe.errors import InputError

# The longest prompt of ShareGPT that SGLang's benchmark sends (tokens).
LONGEST_CHAT = 1024
# Clients count as served all at once from this share in flight on: the rest are between two requests.
ALL_AT_ONCE = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths in tokens, uniform on [range_ratio x nominal, nominal]; ratio 1 is a fixed length.

    The law is that of SGLang's serving benchmark (`--random-range-ratio`).
    """

    nominal: int
    range_ratio: float = 1.0

    @property
    def shortest(self) -> int:
        return max(1, int(self.nominal * self.range_ratio))

    @property
    def mean(self) -> float:
        return (self.shortest + self.nominal) / 2

    def at(self, quantiles: np.ndarray) -> np.ndarray:
        """Return the lengths at quantiles between 0 and 1, as integers."""
        lengths: np.ndarray = self.shortest + np.floor(quantiles * (self.nominal + 1 - self.shortest))
        return lengths.astype(np.int64)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw `count` lengths as integers."""
        return rng.integers(self.shortest, self.nominal + 1, size=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatLengths(Lengths):
    """Lengths of conversations, as in ShareGPT: `nominal` on average, falling off exponentially up to the longest.

    The law is assumed (records give means alone); SGLang's benchmark takes no prompt of more than LONGEST_CHAT tokens.
    """

    @property
    def shortest(self) -> int:
        return 1

    @property
    def mean(self) -> float:
        return float(self.nominal)

    def at(self, quantiles: np.ndarray) -> np.ndarray:
        longest = float(max(LONGEST_CHAT, 5 * self.nominal))
        scale = float(self.nominal)
        for _ in range(20):  # the scale whose mean, cut at the longest, is the nominal length
            scale = self.nominal + longest / math.expm1(longest / scale)
        values = -scale * np.log1p(-quantiles * -math.expm1(-longest / scale))
        return np.maximum(1, np.rint(values)).astype(np.int64)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return self.at(rng.random(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests of `isl` input and `osl` output tokens from `concurrency` clients in a closed loop.

    With `request_rate` (1/s) an open loop: requests come at that rate on average, regardless of those in flight;
    `concurrency` is then the number expected in flight.
    """

    isl: Lengths
    osl: Lengths
    concurrency: int = 1
    request_rate: float | None = None

    @classmethod
    def checked(cls, isl: int, osl: int, concurrency: int, range_ratio: float = 1.0) -> Workload:
        """Build a workload from a user's numbers. Raises InputError naming the flag."""
        for name, value in (("isl", isl), ("osl", osl), ("concurrency", concurrency)):
            within(value, f"--{name}", REQUESTS[name])
        within(range_ratio, "--range-ratio (1: fixed lengths)", REQUESTS["range_ratio"])
        return cls(
            isl=Lengths(nominal=isl, range_ratio=range_ratio),
            osl=Lengths(nominal=osl, range_ratio=range_ratio),
            concurrency=concurrency,
        )

    @property
    def longest_request(self) -> int:
        """Tokens of the longest request, input and output."""
        return self.isl.nominal + self.osl.nominal


class Metric(StrEnum):
    TTFT = "ttft"
    TPOT = "tpot"
    E2E = "e2e"


class Statistic(StrEnum):
    MEAN = "mean"
    P50 = "p50"
    P90 = "p90"
    P95 = "p95"
    P99 = "p99"


_SLO = re.compile(
    r"\s*(?P<metric>[a-z0-9]+)\s*:\s*(?P<statistic>[a-z0-9]+)\s*<=?\s*(?P<limit>\d+(?:\.\d+)?)\s*(?P<unit>ms|s)\s*",
    re.IGNORECASE,
)


class Latencies(Protocol):
    """Anything that knows its latencies in ms by statistic: a prediction, a measurement."""

    @property
    def ttft_ms(self) -> dict[str, float]:
        """Return time to first token."""

    @property
    def tpot_ms(self) -> dict[str, float]:
        """Return time per output token after the first."""

    @property
    def e2e_ms(self) -> dict[str, float]:
        """Return time from request to last token."""


SLO_EXAMPLE = "write it as in --slo 'ttft:p99<2s' or --slo 'tpot:mean<50ms'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """One service-level objective: a statistic of a latency must stay below `limit_ms`."""

    metric: Metric
    statistic: Statistic
    limit_ms: float

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Parse 'ttft:p99<2s'. Raises InputError saying which part is wrong."""
        match = _SLO.fullmatch(text)
        if not match:
            raise InputError(f"the SLO '{text}' does not parse; {SLO_EXAMPLE}")
        metric, statistic = match["metric"].lower(), match["statistic"].lower()
        if metric not in set(Metric):
            raise InputError(f"the SLO '{text}' names metric '{metric}'; known: {', '.join(Metric)}; {SLO_EXAMPLE}")
        if statistic not in set(Statistic):
            raise InputError(
                f"the SLO '{text}' names statistic '{statistic}'; known: {', '.join(Statistic)}; {SLO_EXAMPLE}"
            )
        limit_ms = float(match["limit"]) * (1.0 if match["unit"].lower() == "ms" else 1e3)
        within(limit_ms, f"the limit of --slo '{text}'", REQUESTS["slo_ms"])
        return cls(metric=Metric(metric), statistic=Statistic(statistic), limit_ms=limit_ms)

    def value_ms(self, latencies: Latencies) -> float:
        """Return the latency this objective limits."""
        by_metric = {Metric.TTFT: latencies.ttft_ms, Metric.TPOT: latencies.tpot_ms, Metric.E2E: latencies.e2e_ms}
        return by_metric[self.metric][self.statistic]

    def excess(self, latencies: Latencies) -> float:
        """Return log(latency / limit): positive where the objective is missed."""
        return math.log(max(self.value_ms(latencies), 1e-9) / self.limit_ms)

    def __str__(self) -> str:
        limit = f"{self.limit_ms / 1e3:g}s" if self.limit_ms >= 1e3 else f"{self.limit_ms:g}ms"
        return f"{self.metric}:{self.statistic}<{limit}"


def missed(slos: tuple[Slo, ...], latencies: Latencies) -> tuple[str, ...]:
    """Return one phrase for each objective that is not met; those of a queue without end have no value."""
    values = ((slo, slo.value_ms(latencies)) for slo in slos if slo.excess(latencies) > 0)
    return tuple(
        f"{slo} missed: " + (f"{value:.4g} ms" if math.isfinite(value) else "it grows without end")
        for slo, value in values
    )
