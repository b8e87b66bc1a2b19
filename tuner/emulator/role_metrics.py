"""What a prefill or decode server says of its queues and transfers: metrics, log lines, and its part of /v1/loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from models.serving.scheduler import Scheduler
from planner.fleets.deployment import Role
from tuner.emulator.log import say
from tuner.emulator.recorder import Exposed
from tuner.emulator.roles import Sending

if TYPE_CHECKING:
    from tuner.emulator.metrics import Exposition


@dataclass(slots=True)
class RoleMetrics:
    """The queues of a server of one phase, by the indices of their requests (`coming` with prompt tokens)."""

    role: Role
    observed: Exposed
    shown: Exposition
    bootstrapping: set[int] = field(default_factory=set)
    inflight: set[int] = field(default_factory=set)
    preallocating: set[int] = field(default_factory=set)
    coming: dict[int, int] = field(default_factory=dict)
    speed_gb_s: float = 0.0
    latency_ms: float = 0.0
    logged_s: float = 0.0

    @property
    def prefills(self) -> bool:
        """Whether the server runs prompts."""
        return self.role is Role.PREFILL

    # -- events ------------------------------------------------------------------------------------------------

    def met(self, waited_s: float) -> None:
        """A prompt's decode server is ready for it, after so long."""
        self._note("kv_transfer_bootstrap_ms", 1e3 * waited_s)
        self._note("kv_transfer_alloc_ms", 0.0)

    def allocated(self, waited_s: float) -> None:
        """A decode server has memory for a request, after so long."""
        self._note("kv_transfer_bootstrap_ms", 0.0)
        self._note("kv_transfer_alloc_ms", 1e3 * waited_s)

    def sent(self, index: int, sending: Sending) -> None:
        """A KV cache has been sent."""
        self.speed_gb_s, self.latency_ms = sending.gib_s, 1e3 * sending.seconds
        labels = self.observed.labels(index % self.observed.ranks)
        self._note("kv_transfer_speed_gb_s", self.speed_gb_s, labels)
        self._note("kv_transfer_latency_ms", self.latency_ms, labels)
        self._note("kv_transfer_total_mb", sending.mib, labels)

    def failed(self, stage: str) -> None:
        """A handshake ("bootstrap") or a transfer ("transfer") has failed."""
        for name in (f"num_{stage}_failed_reqs", f"num_{stage}_failed_reqs_total"):
            self.shown.add(name, 1, self.observed.labels(0))

    def _note(self, name: str, value: float, labels: dict[str, int] | None = None) -> None:
        self.shown.note(name, value, labels or self.observed.labels(0))

    # -- state -------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Set the gauges to what is now."""
        for rank in range(self.observed.ranks):
            labels = self.observed.labels(rank)
            for name, value in self._gauges(rank).items():
                self.shown.set(name, value, labels)

    def _gauges(self, rank: int) -> dict[str, float]:
        if self.role is Role.PREFILL:
            bootstrap, inflight = self._of(self.bootstrapping, rank), self._of(self.inflight, rank)
            return {
                "num_prefill_bootstrap_queue_reqs": bootstrap,
                "num_prefill_prealloc_queue_reqs": bootstrap,  # its name until 0.5.9
                "num_prefill_inflight_queue_reqs": inflight,
            }
        return {
            "num_decode_prealloc_queue_reqs": self._of(self.preallocating, rank),
            "num_decode_transfer_queue_reqs": self._of(set(self.coming), rank),
            "pending_prealloc_token_usage": self._coming_tokens(rank) / max(1, self.observed.kv_tokens),
        }

    def _of(self, indices: set[int], rank: int) -> int:
        return sum(index % self.observed.ranks == rank for index in indices)

    def _coming_tokens(self, rank: int) -> int:
        return sum(tokens for index, tokens in self.coming.items() if index % self.observed.ranks == rank)

    def load(self, rank: int) -> dict[str, Any]:
        """Return one rank's queues as /v1/loads has them."""
        return {
            "mode": str(self.role),
            "prefill_bootstrap_queue_reqs": self._of(self.bootstrapping, rank),
            "prefill_inflight_queue_reqs": self._of(self.inflight, rank),
            "decode_prealloc_queue_reqs": self._of(self.preallocating, rank),
            "decode_transfer_queue_reqs": self._of(set(self.coming), rank),
            "decode_retracted_queue_reqs": 0,
            "kv_transfer_speed_gb_s": self.speed_gb_s,
            "kv_transfer_latency_ms": self.latency_ms,
        }

    # -- log lines ---------------------------------------------------------------------------------------------

    def prefill_line(self, server: Scheduler, passes: list[tuple[int, float]]) -> None:
        """Log prefill passes as SGLang does, all ranks in one line."""
        took_s, self.logged_s = server.now_s - self.logged_s, server.now_s
        prompts, tokens = sum(prompts for prompts, _ in passes), sum(tokens for _, tokens in passes)
        usage = server.used / max(1, server.limits.kv_tokens)
        say(
            f"Prefill batch, #new-seq: {prompts}, #new-token: {tokens:.0f}, #cached-token: 0, "
            f"token usage: {usage:.2f}, #running-req: {len(server.running)}, #queue-req: {len(server.waiting)}, "
            f"#pending-token: {sum(request.prompt for request in server.waiting)}, "
            f"#bootstrap-req: {len(self.bootstrapping)}, #inflight-req: {len(self.inflight)}, #optimistic-req: 0, "
            f"cuda graph: False, input throughput (token/s): {tokens / max(took_s, 1e-9):.2f}"
        )

    def decode_line(self, server: Scheduler, tok_s: float) -> None:
        """Log the running batch as SGLang does, all ranks in one line."""
        kv_tokens = max(1, server.limits.kv_tokens)
        say(
            f"Decode batch, #running-req: {len(server.running)}, #token: {server.used:.0f}, "
            f"token usage: {server.used / kv_tokens:.2f}, "
            f"pre-allocated usage: {sum(self.coming.values()) / kv_tokens:.2f}, "
            f"#prealloc-req: {len(self.preallocating)}, #transfer-req: {len(self.coming)}, #retracted-req: 0, "
            f"cuda graph: True, gen throughput (token/s): {tok_s:.2f}, #queue-req: {len(server.waiting)}"
        )
