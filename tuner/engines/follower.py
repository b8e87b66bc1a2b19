"""Ranks beyond the first of a server over several nodes: started and watched, never asked for tokens."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from models.workload import Workload
from tuner.engines.live import LiveEngine, LiveServer
from tuner.seam import Death, FailureKind, LaunchFailed, LaunchOrder, Measurement, ServerInfo
from tuner.server.process import ServerProcess
from tuner.server.readiness import died


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEngine:
    """A live engine on a node of a cluster, which may be asked for any rank of a server."""

    live: LiveEngine

    def launch_order(self, order: LaunchOrder) -> LiveServer | LiveFollower:
        """Start what is ordered: a first rank until it is ready, another one and no longer."""
        if order.rank is None or order.rank.index == 0:
            return self.live.launch_order(order)
        if self.live.aborted.is_set():
            raise LaunchFailed(FailureKind.SUPERVISOR, "the run ends", 0.0)
        self.live.gate.pass_through()
        name = f"sgtune-{order.number}-{secrets.token_hex(4)}"
        process = self.live.start_process(order, self.live.ports.next(), name)
        return LiveFollower(engine=self.live, process=process, order=order)

    def meeting_port(self) -> int:
        return self.live.meeting_port()

    def abort(self) -> None:
        self.live.abort()

    def close(self) -> None:
        self.live.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFollower:
    """A rank that serves no requests of its own."""

    engine: LiveEngine
    process: ServerProcess
    order: LaunchOrder

    def info(self) -> ServerInfo:
        """Return what its log says, and keep that: asked once the first rank is ready, when this one is, too."""
        figures = self.engine.figures_of(self.process, self.order, {})
        per_rank = int(figures.kv_tokens_per_rank.measured or 0.0)
        return ServerInfo(kv_tokens=per_rank, boot_s=time.monotonic() - self.process.started)

    def measure(self, workload: Workload) -> Measurement:
        """Raise RuntimeError: requests go to the first rank."""
        raise RuntimeError("a rank beyond the first takes no requests")

    def death(self) -> Death | None:
        """Return how it ended, None while it runs."""
        return None if self.process.alive else Death(died(self.process), self.process.ended_ago_s)

    def stop(self) -> None:
        """Stop the tree, and wait for the GPU memory it held: it ends by itself when the first rank does."""
        self.engine.ended(self.process)
        self.engine.gate.wait_released()
