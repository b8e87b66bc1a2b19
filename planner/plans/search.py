"""Search every configuration of a space at once, keep the best of each family, say why the rest fell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.config import ServerConfig
from models.costs.memory import GOOD_FREE_GIB, Memory, MemoryLedger, ledger_of
from models.layout import Array, table_of
from models.serving.closed_form import ClosedForm
from models.serving.estimate import Context, Prediction, predict, predict_many
from models.serving.open_loop import predict_open_loop
from models.workload import ALL_AT_ONCE, Metric, Slo, Workload, missed
from planner.plans.candidates import Candidate, Found, Rejected, with_reasons
from planner.plans.space import Space, fill_grid, shapes
from planner.rules import Question, Violation, first_error
from planner.sglang.resolver import DEFAULT_REQUESTS_PER_RANK

# A server with less than this left per GPU after graphs and activations is one allocation from an OOM.
SAFE_FREE_GIB = 1.0
# With so many times the KV tokens that all clients can fill, this share of the card is kept free instead of 5 GiB.
PLENTY_OF_KV = 2.0
AMPLE_FREE_SHARE = 0.085
# The share of a request's life it may wait in line before that counts as a miss, where no limit on TTFT or E2E says.
MOST_WAITING = 0.1
# Throughputs closer than this are a tie: the safer configuration wins.
TIE = 0.002
# Families that are replayed event by event and returned.
REPLAYED = 10
# Streams of arrivals that the figures of the best rest on: one of a thousand requests is 30 % off in its p99 near the
# server's limit.
STREAMS = 16
# Caps on running requests worth trying: all clients; fewer when a latency limit asks for it; and for crowds
# that the KV cache cannot hold at once, since the request table of each costs memory.
LATENCY_SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
CROWD_SHARES = (1.0, 0.5, 0.25)
CROWD_PER_RANK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How many of the best families are replayed, and what spares the rest where one question alone is open.

    After the first candidate that is `enough` no other is replayed; nor is a family whose closed form is beyond
    `hopeless_tpot_ms`. With `all_at_once` a family is represented by a configuration that holds all clients, where it
    has one, and not by one that is faster while some wait in line.
    """

    replayed: int = REPLAYED
    enough: Callable[[Candidate], bool] | None = None
    hopeless_tpot_ms: float = math.inf
    all_at_once: bool = False


FULL = Effort()


def search(
    context: Context, space: Space, workload: Workload, slos: tuple[Slo, ...] = (), effort: Effort = FULL
) -> Found:
    """Evaluate the whole space; return the best candidate of each family, best first under the SLOs.

    All configurations are compared in closed form; the best families are replayed event by event, as many as `effort`
    says, and only they are returned.
    """
    rejected: list[Rejected] = []
    grids: list[list[ServerConfig]] = []
    for shape in shapes(space):
        grid, error = _allowed(context, _grid(shape, context, space, workload, slos))
        if grid:
            grids.append(grid)
        elif error is not None:
            rejected.append(Rejected(config=shape, reason=f"{error.message}; {error.fix}", kind=error.rule))
    if not grids:
        return Found(candidates=(), rejected=tuple(rejected), evaluated=0)
    flat = [config for grid in grids for config in grid]
    table = table_of(flat)
    filled = context.memory(table)
    steady = predict_many(context, table, workload, filled)
    fits = (filled.free >= SAFE_FREE_GIB) & (filled.kv_tokens_per_rank >= filled.needed(workload.longest_request))
    holds = fits & (steady.running >= ALL_AT_ONCE * workload.concurrency)
    best_rows: list[int] = []
    start = 0
    for grid in grids:
        rows = np.arange(start, start + len(grid))
        start += len(grid)
        among = holds if effort.all_at_once and holds[rows].any() else fits
        best = _best_row(rows[among[rows]], filled, steady, workload, slos)
        if best is None:
            rejected.append(_does_not_fit(flat, rows, filled, workload))
        else:
            best_rows.append(best)
    best_rows.sort(key=lambda row: _rank_key(steady, row, workload, slos))
    short = _shortlist(flat, best_rows, effort.replayed)
    hopeful = [row for row in short if 1e3 * float(steady.tpot_s[row]) <= effort.hopeless_tpot_ms]
    leaders = [(flat[row], ledger_of(filled, table, row)) for row in hopeful]
    candidates = _finalists(context, leaders, workload, slos, effort.enough)
    return Found(candidates=candidates, rejected=tuple(rejected), evaluated=len(flat))


def _allowed(context: Context, grid: list[ServerConfig]) -> tuple[list[ServerConfig], Violation | None]:
    """Return the part of a family's grid that no rule forbids, and the last violation met.

    Within a family rules tell apart chunk sizes only, so one member of each speaks for all.
    """
    error, allowed = None, set()
    for config in {config.chunked_prefill_size: config for config in grid}.values():
        broken = first_error(
            Question(config=config, arch=context.arch, machine=context.machine, version=context.version)
        )
        if broken is None:
            allowed.add(config.chunked_prefill_size)
        error = broken or error
    return [config for config in grid if config.chunked_prefill_size in allowed], error


def _grid(
    shape: ServerConfig, context: Context, space: Space, workload: Workload, slos: tuple[Slo, ...]
) -> list[ServerConfig]:
    """Fill the shape's grid, with the running requests capped at each level worth trying."""
    per_rank = min(DEFAULT_REQUESTS_PER_RANK, -(-workload.concurrency // shape.attn_dp_size))
    shares: tuple[float, ...] = CROWD_SHARES if per_rank > CROWD_PER_RANK else (1.0,)
    if any(slo.metric != Metric.TTFT for slo in slos):
        shares = LATENCY_SHARES
    levels = sorted({max(1, round(per_rank * share)) for share in shares}, reverse=True)
    return [config for level in levels for config in fill_grid(shape, space, level * shape.attn_dp_size, context)]


def _best_row(
    rows: npt.NDArray[np.intp], filled: Memory, steady: ClosedForm, workload: Workload, slos: tuple[Slo, ...]
) -> int | None:
    """Return the best of the rows, None of none: most tok/s among those that meet the mean limits, then safest.

    Only where the load can fill the cache does more KV count before more free memory.
    """
    if not len(rows):
        return None
    excess = closed_form_excess(steady, rows, workload, slos)
    if slos:
        rows = rows[excess <= max(0.0, float(excess.min())) + 1e-9]
    output = steady.output_tok_s[rows]
    rows = rows[output >= output.max() * (1.0 - TIE)]
    plenty = rows[filled.kv_tokens[rows] >= PLENTY_OF_KV * workload.concurrency * workload.longest_request]
    if len(plenty):  # more cache is of no use, more free memory survives a fragmented allocator
        rows, enough_gib = plenty, AMPLE_FREE_SHARE * filled.card[plenty]
    else:
        enough_gib = np.full(len(rows), GOOD_FREE_GIB)
    safety = np.minimum(filled.free[rows], enough_gib)
    rows = rows[safety >= safety.max() - 0.25]
    return int(rows[np.argmax(filled.kv_tokens[rows])])


def closed_form_excess(
    steady: ClosedForm, rows: npt.NDArray[np.intp], workload: Workload, slos: tuple[Slo, ...]
) -> Array:
    """Largest log(predicted / limit) over the SLOs and the wait in line; percentiles judged by the mean."""
    worst = np.full(len(rows), -np.inf)
    for slo in slos:
        seconds = {Metric.TTFT: steady.ttft_s, Metric.TPOT: steady.tpot_s, Metric.E2E: steady.e2e_s}[slo.metric]
        worst = np.maximum(worst, np.log(seconds[rows] * 1e3 / slo.limit_ms))
    if waiting_counts(slos):
        waiting = 1.0 - steady.running[rows] / workload.concurrency
        worst = np.maximum(worst, np.log(np.maximum(waiting, 1e-9) / MOST_WAITING))
    return worst


def waiting_counts(slos: tuple[Slo, ...]) -> bool:
    """Say whether waiting in line is a miss: where a speed is promised, and no limit on TTFT or E2E allows a wait."""
    return bool(slos) and all(slo.metric == Metric.TPOT for slo in slos)


def _shortlist(flat: Sequence[ServerConfig], ordered: Sequence[int], count: int) -> list[int]:
    """Return the leader of each layout first, then the leader's other MTP depths, at most `count` rows.

    Ten depths of one layout would tell a reader less than one depth of ten layouts.
    """
    if not ordered:
        return []
    by_layout: dict[str, int] = {}
    for row in ordered:
        by_layout.setdefault(flat[row].layout, row)
    leaders = list(by_layout.values())
    siblings = [row for row in ordered if flat[row].layout == flat[ordered[0]].layout and row not in leaders]
    shortlist = [*leaders[: max(1, count - len(siblings))], *siblings][:count]
    return sorted(shortlist, key=list(ordered).index)


def _rank_key(steady: ClosedForm, row: int, workload: Workload, slos: tuple[Slo, ...]) -> tuple[float, float]:
    rows = np.array([row])
    excess = max(0.0, float(closed_form_excess(steady, rows, workload, slos)[0])) if slos else 0.0
    return (excess, -float(steady.output_tok_s[row]))


def _does_not_fit(
    flat: Sequence[ServerConfig], rows: npt.NDArray[np.intp], filled: Memory, workload: Workload
) -> Rejected:
    """Explain by the configuration that came nearest how many GiB a GPU lacks."""
    shortage = filled.shortage(workload.longest_request, SAFE_FREE_GIB)[rows]
    nearest = int(rows[np.argmin(shortage)])
    lacking = float(shortage.min())
    weights = f"weights {float(filled.weights.total[nearest]):.1f} of {float(filled.card[nearest]):.1f} GiB"
    if lacking <= 0.0:
        reason = f"does not fit: only between the memory fractions tried, with {-lacking:.1f} GiB to spare ({weights})"
    else:
        reason = f"does not fit: {lacking:.1f} GiB short per GPU ({weights})"
    return Rejected(config=flat[nearest], reason=reason, kind="does not fit", shortage_gib=max(0.0, lacking))


def _finalists(
    context: Context,
    leaders: Sequence[tuple[ServerConfig, MemoryLedger]],
    workload: Workload,
    slos: tuple[Slo, ...],
    enough: Callable[[Candidate], bool] | None,
) -> tuple[Candidate, ...]:
    """Replay the leading families, check the SLOs on their distributions, and order them for good."""
    finalists = []
    for config, ledger in leaders:
        prediction = _predicted(context, config, workload)
        finalists.append(
            Candidate(
                config=config,
                prediction=prediction,
                ledger=ledger,
                misses=misses_of(prediction, workload, slos),
            )
        )
        if enough is not None and enough(finalists[-1]):
            break
    finalists.sort(key=lambda c: final_key(c.prediction, workload, slos))
    return tuple(with_reasons(finalists))


def redrawn(context: Context, candidate: Candidate, workload: Workload, slos: tuple[Slo, ...]) -> Candidate:
    """Return the best of an open loop with its figures over several streams of arrivals."""
    if candidate.prediction.queue_grows:
        return candidate
    prediction = predict_open_loop(context, candidate.config, workload, draws=STREAMS)
    return replace(candidate, prediction=prediction, misses=misses_of(prediction, workload, slos))


def misses_of(prediction: Prediction, workload: Workload, slos: tuple[Slo, ...]) -> tuple[str, ...]:
    """Say which limits are missed, and the load itself; first of all a queue that grows without end."""
    limits, load = missed(slos, prediction), waits(prediction, workload, slos)
    return (*load, *limits) if prediction.queue_grows else (*limits, *load)


def _predicted(context: Context, config: ServerConfig, workload: Workload) -> Prediction:
    """Predict the load that is asked for: clients in a closed loop, or arrivals at a rate."""
    play = predict if workload.request_rate is None else predict_open_loop
    return play(context, config, workload)


def final_key(prediction: Prediction, workload: Workload, slos: tuple[Slo, ...]) -> tuple[float, float]:
    """Order by what is missed, then by rate; all that keep up with an open loop have its rate: the fastest answer."""
    if workload.request_rate is None:
        return (_miss(prediction, workload, slos), -prediction.output_tok_s)
    if prediction.queue_grows:  # after all that keep up: the most that is answered first
        return (math.inf, -prediction.output_tok_s)
    return (_miss(prediction, workload, slos), prediction.e2e_ms["mean"])


def _miss(prediction: Prediction, workload: Workload, slos: tuple[Slo, ...]) -> float:
    """Return by how much (log) the worst SLO or the wait in line is missed; 0 when all are met."""
    worst = max((max(0.0, slo.excess(prediction)) for slo in slos), default=0.0)
    waiting = _waiting(prediction, workload)
    return max(worst, math.log(waiting / MOST_WAITING)) if waiting_counts(slos) and waiting > MOST_WAITING else worst


def _waiting(prediction: Prediction, workload: Workload) -> float:
    """Return the share of the clients that wait in line, which is the share of a request's life spent there."""
    return 0.0 if prediction.in_flight else 1.0 - prediction.running_requests / workload.concurrency


def most_answered(prediction: Prediction, workload: Workload) -> str:
    """Say how many requests a server answers of more than it can; at its very limit no queue has a length either."""
    rate, most = workload.request_rate or 0.0, prediction.request_rate
    if most >= rate:
        return f"{rate:g} requests/s are the most that is answered, with nothing to spare for bursts"
    return f"{most:.3g} of {rate:g} requests/s are answered"


def waits(prediction: Prediction, workload: Workload, slos: tuple[Slo, ...]) -> tuple[str, ...]:
    """Say what misses the load itself: an open loop that falls behind, a closed one that waits in line."""
    if prediction.queue_grows:
        return (f"the queue grows without end: {most_answered(prediction, workload)}",)
    if waiting_counts(slos) and _waiting(prediction, workload) > MOST_WAITING:
        return (
            f"{prediction.running_requests:,.0f} of {workload.concurrency:,} run concurrently: the others wait "
            f"(TTFT {prediction.ttft_ms['mean'] / 1e3:,.1f} s mean); add a TTFT limit to allow the wait",
        )
    return ()
