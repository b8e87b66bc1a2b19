"""One configuration under a stretch of a trace: the requests that count, and its prediction by replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from models.config import ServerConfig
from models.layout import Array, table_of
from models.serving.estimate import Context, Prediction, predict, prediction_of, statistics_ms
from models.serving.replay import Replay
from models.serving.trace_replay import TraceReplay, replay_trace
from models.traffic.traced_workload import TracedWorkload
from models.workload import Metric, Slo, Workload
from planner.traffic_plans.served import on, servers_of


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedRequests:
    """The requests of a window that count: when each was sent, its first and last token (seconds), its tokens out."""

    sent_s: Array
    first_s: Array
    end_s: Array
    osl: Array

    @property
    def ttft_s(self) -> Array:
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> Array:
        return np.maximum(self.end_s - self.first_s, 0.0) / np.maximum(self.osl - 1.0, 1.0)

    @property
    def e2e_s(self) -> Array:
        return self.end_s - self.sent_s

    @property
    def tpot_ms(self) -> dict[str, float]:
        """Return the statistics of TPOT over the requests that have one."""
        several = self.osl > 1
        return statistics_ms(self.tpot_s[several] if several.any() else np.zeros(1))

    @property
    def output_tok_s(self) -> float:
        """Tokens per second from the first request sent to the last answer's end."""
        return float(self.osl.sum()) / max(float(self.end_s.max() - self.sent_s.min()), 1e-9)

    def goodput_rps(self, slos: Sequence[Slo], length_s: float, slower: float = 1.0) -> float:
        """Return the requests per second of the window whose own latencies keep every limit, whatever its statistic.

        `slower`: when everything takes so many times as long.
        """
        seconds = {Metric.TTFT: self.ttft_s, Metric.TPOT: self.tpot_s, Metric.E2E: self.e2e_s}
        keeping = np.ones(len(self.osl), dtype=bool)
        for slo in slos:
            keeping &= seconds[slo.metric] * slower * 1e3 <= slo.limit_ms
        return float(keeping.sum()) / length_s


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPrediction(Prediction):
    """A prediction under a trace, with the requests per second that keep every limit and the share of prompts hit."""

    goodput_rps: float
    hit_rate: float


def played_on(context: Context, config: ServerConfig, workload: TracedWorkload) -> TraceReplay:
    """Replay a window, lead-in included, on one server of a resolved configuration."""
    return replay_trace(workload.trace, on(servers_of(context, config, len(workload.trace)), 1))


def counted(played: TraceReplay, workload: TracedWorkload) -> CountedRequests:
    """Return what counts of a replay."""
    counts = workload.counts(played.sent_s)
    return CountedRequests(
        sent_s=played.sent_s[counts],
        first_s=played.first_s[counts],
        end_s=played.end_s[counts],
        osl=played.osl[counts],
    )


def predict_load(context: Context, config: ServerConfig, workload: Workload, slos: Sequence[Slo] = ()) -> Prediction:
    """Predict a configuration under whatever the load is: clients in a closed loop, or a stretch of a trace."""
    if not isinstance(workload, TracedWorkload):
        return predict(context, config, workload)
    played = played_on(context, config, workload)
    requests, counts = counted(played, workload), workload.counts(played.sent_s)
    several = requests.osl > 1
    replay = Replay(
        ttft_s=requests.ttft_s,
        tpot_s=requests.tpot_s[several] if several.any() else np.zeros(1),
        e2e_s=requests.e2e_s,
        finish_s=requests.end_s,
        osl=requests.osl,
        duration_s=float(played.end_s.max()),
        output_tok_s=requests.output_tok_s,
        mean_running=played.mean_running,
        peak_kv_tokens=played.peak_kv_tokens,
        retractions=played.retractions,
    )
    filled = context.memory(table_of([config]))
    as_closed = prediction_of(context, config, workload, filled=filled, played=replay)
    return TracedPrediction(
        **{item.name: getattr(as_closed, item.name) for item in fields(Prediction)},
        goodput_rps=requests.goodput_rps(slos, workload.mark.length_s),
        hit_rate=float(played.cached[counts].sum() / max(played.isl[counts].sum(), 1.0)),
    )
