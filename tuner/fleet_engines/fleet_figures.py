"""What every server of a deployment says of itself while it is measured: counters around, queues in between."""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from hwprobe.errors import InputError
from planner.fleets.deployment import Role
from tuner.bench.each_server import Counters, ServerShare, ServerState, read_counters, shares
from tuner.bench.server_side import Address, asked
from tuner.seam import FailureKind, LaunchFailed, ServerFigures
from tuner.server.ask import NO_ANSWER, items, mapping, number

LOOK_S = 2.0
# Figures of ServerFigures that are looked at in between, and what /v1/loads calls them: of a rank, or of its role.
LOOKED_AT = {"kv_share": "token_usage", "queued": "num_waiting_reqs"}
OF_ROLE = {"prealloc_queued": "decode_prealloc_queue_reqs", "transfer_queued": "decode_transfer_queue_reqs"}
LOADS_S = 1.0


@dataclass(frozen=True, slots=True)
class Named:
    """A server of a deployment: its name, its role, its address."""

    name: str
    role: Role
    url: str


@dataclass(slots=True)
class FleetWatch:
    """Reads all servers before, while and after a point is measured."""

    servers: Sequence[Named]
    before: list[Counters | None] = field(init=False)
    looks: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    looked_s: float = 0.0

    def __post_init__(self) -> None:
        self.before = [_counters(server) for server in self.servers]
        self.looked_s = time.monotonic()

    def look(self) -> None:
        """Ask every server for its queues, every few seconds however often this is called."""
        if time.monotonic() - self.looked_s < LOOK_S:
            return
        self.looked_s = time.monotonic()
        for server in self.servers:
            self.looks.setdefault(server.name, []).append(_queues(server))

    def figures(self) -> tuple[ServerFigures, ...]:
        """Return what each server did. Raises LaunchFailed (degraded) where one gives no answer any more."""
        after = [_counters(server) for server in self.servers]
        by_url: dict[str, ServerShare] = {}
        for role in dict.fromkeys(server.role for server in self.servers):  # servers of one role are compared
            places = [at for at, server in enumerate(self.servers) if server.role is role]
            urls = [self.servers[at].url for at in places]
            role_shares = shares(urls, [self.before[at] for at in places], [after[at] for at in places])
            by_url |= {share.url: share for share in role_shares}
        for server in self.servers:
            share = by_url[server.url]
            if share.state is ServerState.LOST:
                raise LaunchFailed(FailureKind.DEGRADED, f"{server.name}: {share.why}", 0.0)
        return tuple(self._figures(server, by_url[server.url]) for server in self.servers)

    def _figures(self, server: Named, share: ServerShare) -> ServerFigures:
        means = _means(self.looks.get(server.name, []))
        return ServerFigures(
            name=server.name,
            role=server.role,
            requests=share.requests,
            output_tok_s=share.output_tok_s,
            ttft_ms=share.ttft_ms,
            tpot_ms=share.tpot_ms,
            transfer_ms=share.transfer_ms,
            transfer_gb_s=share.transfer_gb_s,
            slow=share.why if share.state is ServerState.SLOW else "",
            **{name: means.get(name) for name in (*LOOKED_AT, *OF_ROLE)},
        )


def _counters(server: Named) -> Counters | None:
    try:
        return read_counters(server.url, None)
    except InputError:  # a server that shows nothing of what it does is none that can be judged
        return None


def _queues(server: Named) -> dict[str, float]:
    """Return what a server says of its queues now, all ranks together; its KV cache's is that of the fullest."""
    try:
        status, answer = asked(Address.parse(server.url), "GET", "/v1/loads?include=all", timeout_s=LOADS_S)
    except NO_ANSWER:
        return {}
    loads = items(mapping(answer).get("loads")) if status == http.client.OK else []
    values: dict[str, float] = {}
    for load in loads:
        of_role = mapping(load.get("disaggregation"))
        for name, theirs in (*LOOKED_AT.items(), *OF_ROLE.items()):
            value = number((of_role if name in OF_ROLE else load).get(theirs))
            if value is not None:
                before = values.get(name, 0.0)
                values[name] = max(before, value) if name == "kv_share" else before + value
    return values


def _means(looks: Sequence[dict[str, float]]) -> dict[str, float]:
    names = {name for look in looks for name in look}
    return {name: _mean([look[name] for look in looks if name in look]) for name in names}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
