"""From a record of a prefill/decode fleet to a case: each pool's server read as a record of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from packaging.version import Version

from hwprobe.bounds import ENGINE, within
from hwprobe.catalogue import gpus_per_node
from hwprobe.errors import InputError
from models.architecture import ModelArchitecture
from models.engine.profile import EngineProfile
from models.machine import Machine
from models.records.case import MOST_FLEET_REQUESTS, REQUESTS_PER_CLIENT, TRANSFER_SPEED, Case, PrefillPool
from models.records.points import Point
from models.serving.fleet_replay import transfer_note
from planner.point_case import case_of
from planner.sglang.flags import life_of

# Flags of the fleet's plumbing, which no server's memory or speed depends on, and other programs' own flags.
PLUMBING = re.compile(
    r"--(?:disaggregation-[a-z-]+|load-balance-method|dist-init-addr|host|port|"
    r"skip-tokenizer-init|trust-remote-code)(?:[ =](?!--)\S+)?"
)
Count = Annotated[int, Meta(ge=1, le=4096)]


class PoolRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One pool of a point record: servers alike in one role."""

    role: str
    servers: Count
    gpus_per_server: Count
    tp: Count | None = None
    attn_dp: Count | None = None
    ep: Count | None = None
    pp: Count | None = None
    launch_args: str | None = None


def record_case(
    point: Point,
    engine: EngineProfile | None = None,
    arch: ModelArchitecture | None = None,
    machine: Machine | None = None,
) -> Case:
    """Return the case of a record, of one server or of a fleet with `pools`.

    Raises InputError for what the model cannot answer, naming the field.
    """
    pools = _pools(point.extra.get("pools"))
    if not pools:
        return case_of(point, engine, arch, machine)
    by_role = {pool.role: pool for pool in pools}
    if set(by_role) != {"prefill", "decode"} or len(pools) != 2:
        roles = ", ".join(pool.role for pool in pools)
        raise InputError(f"pools of the roles {roles}: one pool of prefill and one of decode servers are modelled")
    point = _with_release(point, pools)
    prefill = case_of(_server_of(point, by_role["prefill"]), engine, arch, machine)
    decode = case_of(_server_of(point, by_role["decode"]), engine, arch, machine)
    return replace(
        decode,
        run=replace(decode.run, requests=_requests(point, decode.run.concurrency)),
        prefill=PrefillPool(
            context=prefill.context,
            config=prefill.config,
            servers=by_role["prefill"].servers,
            kv_tokens=prefill.kv_tokens,
        ),
        servers=by_role["decode"].servers,
        measured=point.measured | _transfer_speed(point),
        warnings=(*decode.warnings, transfer_note(decode.context)),
    )


def _transfer_speed(point: Point) -> dict[str, float]:
    """Return what SGLang measured of the KV transfer, where the record says it (its metric, in GB/s)."""
    speed = point.extra.get(TRANSFER_SPEED)
    if speed is None:
        return {}
    if isinstance(speed, bool) or not isinstance(speed, int | float):
        raise InputError(f"{TRANSFER_SPEED} is {speed!r}; it is a number of GB/s")
    within(float(speed), TRANSFER_SPEED, ENGINE["transfer_gb_s"])
    return {TRANSFER_SPEED: float(speed)}


def _pools(records: Any) -> tuple[PoolRecord, ...]:
    if not records:
        return ()
    try:
        return msgspec.convert(records, tuple[PoolRecord, ...])
    except msgspec.ValidationError as error:
        raise InputError(f"pools: {error}") from error


def _server_of(point: Point, pool: PoolRecord) -> Point:
    """Return one server of a pool as a record of its own."""
    words = pool.launch_args or ""
    flags = words[words.find("--") :] if "--" in words else ""
    return replace(
        point,
        disaggregated=False,
        n_gpus=pool.gpus_per_server,
        n_nodes=-(-pool.gpus_per_server // gpus_per_node(point.gpu.lower())),
        tp=pool.tp,
        attn_dp=pool.attn_dp,
        ep=pool.ep,
        pp=pool.pp,
        max_total_num_tokens=None,
        launch_args=PLUMBING.sub("", flags).strip() or None,
        extra={name: value for name, value in point.extra.items() if name != "pools"},
    )


def _with_release(point: Point, pools: Sequence[PoolRecord]) -> Point:
    """Return the point with the newest release that knows all its flags, where it names none itself."""
    if point.engine_version is not None:
        return point
    words = {word.partition("=")[0] for pool in pools for word in (pool.launch_args or "").split()}
    lives = [life for word in words if (life := life_of(word))]
    newest = min((until for _, until in lives), key=Version, default=None)
    return replace(point, engine_version=newest)


def _requests(point: Point, clients: int) -> int:
    """Return the requests of the run: a fleet that starves shows it only after some of each client's."""
    return min(MOST_FLEET_REQUESTS, point.num_prompts or REQUESTS_PER_CLIENT * clients)
