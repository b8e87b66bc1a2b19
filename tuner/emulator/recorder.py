"""What SGLang's scheduler and front end count and observe, taken from the driver's batches and requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.serving.request import Request
from models.serving.scheduler import Scheduler
from models.serving.step_times import StepTimes

if TYPE_CHECKING:
    from tuner.emulator.driver import ServedRequest
    from tuner.emulator.metrics import Exposition
    from tuner.emulator.role_metrics import RoleMetrics

# Decode passes between two updates of SGLang's gauges (--decode-log-interval).
LOG_INTERVAL = 40
# What the ranks' meeting before each step takes where no rank is late.
SYNC_S = 0.0002


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """What metrics say of the server beside its requests.

    `graph_max_bs` and `kv_tokens` are those of one attention-DP rank, `graph_max_bs` 0 where nothing is captured;
    `late_share` is the share of a step for which rank `late_rank` is waited for; `balancedness` is None where the
    server does not report it.
    """

    ranks: int
    attn_tp: int
    ep_ranks: int
    tp: int
    graph_max_bs: int
    kv_tokens: int
    context_length: int
    page_size: int
    mtp_steps: int
    radix: bool
    late_rank: int = 0
    late_share: float = 0.0
    balancedness: float | None = None

    def labels(self, rank: int) -> dict[str, int]:
        """Return the ranks of the scheduler that speaks for attention-DP rank `rank`."""
        tp_rank = rank * self.attn_tp
        labels = {"tp_rank": tp_rank, "pp_rank": 0, "moe_ep_rank": tp_rank * self.ep_ranks // self.tp}
        return {**labels, "dp_rank": rank} if self.ranks > 1 else labels


class CountedTimes(StepTimes):
    """Step times that remember the prefill passes asked for: prompts and new tokens of each."""

    def __init__(self, times: StepTimes) -> None:
        """Count the passes of a server with these times."""
        self.__dict__.update(times.__dict__)
        self._times = times
        self._passes: list[tuple[int, float]] = []

    def prefill_s(self, prompts: int, new_tokens: float, pairs: float) -> float:
        """Return the time of a pass, and remember it."""
        self._passes.append((prompts, new_tokens))
        return self._times.prefill_s(prompts, new_tokens, pairs)

    def take_passes(self) -> list[tuple[int, float]]:
        """Return the passes since the last call."""
        passes, self._passes = self._passes, []
        return passes


@dataclass(slots=True)
class _Told:
    """When a client last heard, and when its request came, entered a batch and had its first token."""

    came_s: float
    streaming: bool
    entered_s: float = -1.0
    first_s: float = -1.0
    last_s: float = -1.0


class Recorder:
    """Counts what happens. Times are the driver's."""

    def __init__(
        self, shown: Exposition, observed: Exposed, times: CountedTimes, role: RoleMetrics | None = None
    ) -> None:
        self._shown, self._observed, self._times, self._role = shown, observed, times, role
        self._told: dict[int, _Told] = {}
        self._decodes, self._since_s, self._since_tokens = 0, 0.0, [0.0] * observed.ranks
        self._throughput = [0.0] * observed.ranks
        self._retractions, self._retracted_now = 0, [0] * observed.ranks
        self._evictable = [0] * observed.ranks
        self._hit = self._new = 0.0
        self._hit_rate = 0.0
        for rank in range(observed.ranks):
            self._start(rank)

    def _start(self, rank: int) -> None:
        observed, shown, labels = self._observed, self._shown, self._observed.labels(rank)
        shown.set("max_total_num_tokens", observed.kv_tokens, labels)
        shown.set("page_size", observed.page_size, labels)
        shown.set("num_pages", observed.kv_tokens // max(1, observed.page_size), labels)
        shown.set("context_len", observed.context_length, labels)

    # -- requests ----------------------------------------------------------------------------------------------

    def came(self, live: ServedRequest, came_s: float, *, streaming: bool) -> None:
        """A request has reached the front end."""
        self._told[live.request.index] = _Told(came_s, streaming)

    def told(self, live: ServedRequest, tokens: int, now_s: float) -> None:
        """A client has been told of `tokens` more."""
        shown_to = self._told.get(live.request.index)
        if shown_to is None or tokens <= 0:
            return
        flow = _flow(shown_to)
        if shown_to.first_s < 0:
            shown_to.first_s = now_s
            name = "time_to_first_token_seconds"
            self._shown.observe(name, now_s - shown_to.came_s, flow)
        else:
            gap_s = (now_s - shown_to.last_s) / tokens
            for _ in range(tokens):
                self._shown.observe("inter_token_latency_seconds", gap_s)
                self._shown.observe("time_per_output_token_seconds", gap_s)
        shown_to.last_s = now_s

    def finished(self, live: ServedRequest, now_s: float) -> None:
        """A client has its whole answer."""
        shown_to = self._told.pop(live.request.index, None)
        if shown_to is None:
            return
        shown, request, flow = self._shown, live.request, _flow(shown_to)
        prompt = request.isl
        shown.add("prompt_tokens_total", prompt, flow)
        shown.add("generation_tokens_total", live.tokens, flow)
        if live.cached:
            shown.add("cached_tokens_total", live.cached, {"cache_source": "device"})
        shown.add("num_requests_total", 1, flow)
        shown.observe("e2e_request_latency_seconds", now_s - shown_to.came_s, flow)
        if live.tokens > 1 and shown_to.first_s >= 0:
            tpot_s = (now_s - shown_to.first_s) / (live.tokens - 1)
            shown.observe("request_time_per_output_token_seconds", tpot_s, flow)
        shown.observe("prompt_tokens_histogram", prompt)
        shown.observe("uncached_prompt_tokens_histogram", request.isl - live.cached)
        shown.observe("generation_tokens_histogram", live.tokens)
        if self._observed.mtp_steps:
            shown.add("spec_verify_calls_total", max(1.0, (live.tokens - 1) / self._times.accepted))
        rank = request.index % self._observed.ranks
        self._evictable[rank] += prompt + live.tokens if self._observed.radix else 0

    def aborted(self, live: ServedRequest) -> None:
        """A client has gone."""
        if self._told.pop(live.request.index, None) is not None:
            self._shown.add("num_aborted_requests_total", 1)

    # -- batches -----------------------------------------------------------------------------------------------

    def batch(self, server: Scheduler, live: Iterable[ServedRequest], before: tuple[float, float]) -> None:
        """A batch has run; `before` are the scheduler's time and step when it began."""
        began_s, began_step = before
        steps = round(server.step - began_step)
        passes = self._times.take_passes()
        if server.retractions > self._retractions:
            self._retracted(server)
        if passes:
            hit = self._entered(server, list(live), began_s)
            if self._role is None or self._role.prefills:
                self._prefilled(passes, hit)
            if self._role is not None and self._role.prefills:
                self._role.prefill_line(server, passes)
        if steps > 0:
            self._decoded(server, steps)
        if passes or steps:
            self._met(server.now_s - began_s)
        if passes or (steps and self._decodes % LOG_INTERVAL < steps):
            self.refresh(server)

    def _retracted(self, server: Scheduler) -> None:
        more, self._retractions = server.retractions - self._retractions, server.retractions
        for rank in range(self._observed.ranks):
            share = more // self._observed.ranks + (rank < more % self._observed.ranks)
            labels = self._observed.labels(rank)
            self._shown.add("num_retracted_requests_total", share, labels)
            self._retracted_now[rank] = share
            self._shown.set("total_retracted_reqs", server.retractions, labels)

    def _entered(self, server: Scheduler, live: list[ServedRequest], began_s: float) -> list[float]:
        """Observe how long requests waited that have entered a batch; return their cached tokens, of each rank."""
        hit = [0.0] * self._observed.ranks
        for served in live:
            shown_to, request = self._told.get(served.request.index), served.request
            if (
                shown_to is not None
                and shown_to.entered_s < 0
                and (request.prefilled > 0 or request.index in server.running)
            ):
                shown_to.entered_s = began_s
                rank = request.index % self._observed.ranks
                labels = self._observed.labels(rank)
                self._shown.observe("queue_time_seconds", max(0.0, began_s - shown_to.came_s), labels)
                hit[rank] += served.cached
        return hit

    def _prefilled(self, passes: list[tuple[int, float]], hit: list[float]) -> None:
        new = sum(tokens for _, tokens in passes)
        self._hit_rate = sum(hit) / max(1.0, sum(hit) + new)
        for rank in range(self._observed.ranks):
            labels = self._observed.labels(rank)
            self._shown.add("cuda_graph_passes_total", len(passes), {**labels, "mode": "prefill_none"})
            self._shown.add("realtime_tokens_total", new / self._observed.ranks, {**labels, "mode": "prefill_compute"})
            self._shown.add("realtime_tokens_total", hit[rank], {**labels, "mode": "prefill_cache"})
            self._balance(labels, rank, "extend", len(passes))

    def _decoded(self, server: Scheduler, steps: int) -> None:
        self._decodes += steps
        running = self._per_rank(server.running.values())
        for rank, requests in enumerate(running):
            labels = self._observed.labels(rank)
            if requests:
                graph = len(requests) <= self._observed.graph_max_bs
                mode = "decode_cuda_graph" if graph else "decode_none"
                self._shown.add("cuda_graph_passes_total", steps, {**labels, "mode": mode})
                self._shown.set("is_cuda_graph", float(graph), labels)
            tokens = steps * len(requests) * self._times.accepted
            self._since_tokens[rank] += tokens
            self._shown.add("realtime_tokens_total", tokens, {**labels, "mode": "decode"})
            self._balance(labels, rank, "decode", steps)

    def _balance(self, labels: dict[str, int], rank: int, mode: str, passes: int) -> None:
        if self._observed.balancedness is not None and labels["moe_ep_rank"] == 0 and rank == 0:
            for _ in range(passes):
                self._shown.observe("eplb_balancedness", self._observed.balancedness, {**labels, "forward_mode": mode})

    def _met(self, took_s: float) -> None:
        """Every rank has waited for the last of them."""
        if self._observed.ranks <= 1:
            return
        for rank in range(self._observed.ranks):
            late_s = 0.0 if rank == self._observed.late_rank else self._observed.late_share * took_s
            self._shown.observe("dp_attention_sync_wait_seconds", SYNC_S + late_s, self._observed.labels(rank))

    def refresh(self, server: Scheduler) -> None:
        """Set the gauges to what is now."""
        running, waiting = self._per_rank(server.running.values()), self._per_rank(server.waiting)
        span_s = server.now_s - self._since_s
        if self._decodes % LOG_INTERVAL == 0 and span_s > 0.0 and any(self._since_tokens):
            self._throughput = [tokens / span_s for tokens in self._since_tokens]
            if self._role is not None and not self._role.prefills:
                self._role.decode_line(server, sum(self._throughput))
            self._since_s, self._since_tokens = server.now_s, [0.0] * self._observed.ranks
        if not server.running:
            self._throughput = [0.0] * self._observed.ranks
        for rank in range(self._observed.ranks):
            self._gauges(rank, server, running[rank], len(waiting[rank]))
        if self._role is not None:
            self._role.refresh()

    def _gauges(self, rank: int, server: Scheduler, running: list[Request], waiting: int) -> None:
        observed, shown, labels = self._observed, self._shown, self._observed.labels(rank)
        accepted = self._times.accepted
        used = sum(request.prompt + (server.step - request.start_step) * accepted for request in running)
        if server.chunked is not None and server.chunked.index % observed.ranks == rank:
            used += server.chunked.prefilled
        evictable = min(self._evictable[rank], max(0, observed.kv_tokens - int(used)))
        self._evictable[rank] = evictable
        values = {
            "num_running_reqs": len(running),
            "num_queue_reqs": waiting,
            "num_grammar_queue_reqs": 0,
            "gen_throughput": self._throughput[rank],
            "cache_hit_rate": self._hit_rate,
            "decode_sum_seq_lens": int(used),
            "token_usage": used / max(1, observed.kv_tokens),
            "full_token_usage": used / max(1, observed.kv_tokens),
            "swa_token_usage": 0.0,
            "mamba_usage": 0.0,
            "num_used_tokens": int(used),
            "kv_used_tokens": int(used),
            "kv_evictable_tokens": evictable,
            "kv_available_tokens": observed.kv_tokens - int(used) - evictable,
            "spec_accept_length": accepted if observed.mtp_steps else 0.0,
            "spec_accept_rate": (accepted - 1.0) / observed.mtp_steps if observed.mtp_steps else 0.0,
            "spec_num_steps": observed.mtp_steps,
            "num_retracted_reqs": self._retracted_now[rank],
            "num_paused_reqs": 0,
            "utilization": 0.0,
            "new_token_ratio": server.ratio,
        }
        for name, value in values.items():
            shown.set(name, value, labels)

    def _per_rank(self, requests: Iterable[Request]) -> list[list[Request]]:
        by_rank: list[list[Request]] = [[] for _ in range(self._observed.ranks)]
        for request in requests:
            by_rank[request.index % self._observed.ranks].append(request)
        return by_rank


def _flow(shown_to: _Told) -> dict[str, str]:
    return {"is_streaming": "true" if shown_to.streaming else "false"}
