"""What a server's role makes of it: step times and limits, and what handing a KV cache over takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from models.config import ServerConfig
from models.serving.estimate import Context
from models.serving.fleet_replay import Transfer
from models.serving.role_times import ServerModel, decode_role, prefill_role
from planner.fleets.deployment import BOOTSTRAP_PORT, Role

# SGLang's name for a prefill server that does not exist: nothing is transferred.
FAKE_HOST = "2.2.2.2"
FAKE_BACKEND = "fake"
# --num-reserved-decode-tokens.
RESERVED_TOKENS = 512
# A decode server of at most so many requests a worker keeps twice as many slots for those that are being sent to it.
FEW_PER_WORKER = 32
MIB, GIB = 2.0**20, 2.0**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the two halves of a request meet: the bootstrap endpoint of its prefill server, and a room there."""

    host: str | None
    port: int
    room: int

    @property
    def address(self) -> str:
        """Host and port of the bootstrap endpoint."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlayed:
    """What a prefill or decode server needs to know beyond its times and limits.

    `reserved_tokens` is the room a decode server keeps for each request it holds, `extra_slots` are for requests that
    are being sent to it, `attn_tp` the ranks that each hold the whole latent KV cache of a request.
    """

    role: Role
    backend: str
    bootstrap_port: int
    reserved_tokens: int
    extra_slots: int
    attn_tp: int
    transfer: Transfer

    def meeting_of(self, body: dict[str, Any]) -> Meeting | None:
        """Read where a request's halves meet; None where it does not say and the backend needs it."""
        room, host = body.get("bootstrap_room"), body.get("bootstrap_host")
        if room is None and self.backend != FAKE_BACKEND:
            return None
        return Meeting(host=host, port=int(body.get("bootstrap_port") or BOOTSTRAP_PORT), room=int(room or 0))

    def is_fake(self, meeting: Meeting) -> bool:
        """Say whether nothing is transferred: the other half of the request does not exist."""
        return meeting.host == FAKE_HOST or (meeting.host is None and self.backend == FAKE_BACKEND)

    def sending(self, tokens: int, copies: int) -> Sending:
        """Return what sending `copies` of a request's KV cache takes."""
        size = tokens * self.transfer.bytes_per_token * copies
        return Sending(size=size, seconds=self.transfer.latency_s + size / self.transfer.bytes_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """Bytes that are sent for a request, all copies, and the seconds it takes."""

    size: float
    seconds: float

    @property
    def mib(self) -> float:
        """The size in MiB."""
        return self.size / MIB

    @property
    def gib_s(self) -> float:
        """The rate, handshakes included, in SGLang's GB (GiB) per second."""
        return self.size / GIB / self.seconds if self.seconds > 0.0 else 0.0


def copies_sent(prefill_attn_tp: int, decode_attn_tp: int) -> int:
    """Return how often one prefill rank sends MLA's latent: to every decode rank that has no prefill rank of its own.

    Source: `required_dst_info_num` of SGLang's disaggregation/common/conn.py, 0.5.23.
    """
    return max(1, decode_attn_tp // prefill_attn_tp)


def role_of(config: ServerConfig) -> Role:
    """Return the role that a configuration's flags give a server."""
    mode = str(config.flag("disaggregation_mode", "null"))
    return Role.MIXED if mode == "null" else Role(mode)


def keeps_prefixes(config: ServerConfig) -> bool:
    """Say whether the server keeps prompts for others that begin alike; a decode server does where it is told to."""
    switched_on = role_of(config) is not Role.DECODE or bool(config.flag("disaggregation_decode_enable_radix_cache"))
    return switched_on and not config.disable_radix_cache


def role_played(config: ServerConfig, arguments: dict[str, Any], transfer: Transfer) -> RolePlayed | None:
    """Read a server's role from its configuration and the arguments typed; None for a server of both phases."""
    role = role_of(config)
    if role is Role.MIXED:
        return None
    extra = arguments.get("disaggregation_decode_extra_slots")
    most = arguments.get("max_running_requests")  # SGLang decides before it has resolved this
    if extra is None:
        per_worker = max(1, int(most) // config.attn_dp_size) if most is not None else FEW_PER_WORKER + 1
        extra = 2 * per_worker if per_worker <= FEW_PER_WORKER else 0
    return RolePlayed(
        role=role,
        backend=str(arguments.get("disaggregation_transfer_backend") or "mooncake"),
        bootstrap_port=int(arguments.get("disaggregation_bootstrap_port") or BOOTSTRAP_PORT),
        reserved_tokens=int(arguments.get("num_reserved_decode_tokens") or RESERVED_TOKENS),
        extra_slots=int(extra) * config.attn_dp_size,
        attn_tp=config.tp_size // max(1, config.attn_dp_size),
        transfer=transfer,
    )


def in_role(server: ServerModel, config: ServerConfig, context: Context) -> ServerModel:
    """Return a server's times and limits in its role; it takes one decode step at a time."""
    played = {Role.PREFILL: prefill_role, Role.DECODE: decode_role}.get(role_of(config))
    model = server if played is None else played(server, config, context)
    return replace(model, limits=replace(model.limits, longest_stride=1.0))
