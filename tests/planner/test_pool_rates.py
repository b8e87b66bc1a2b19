"""Rates of prefill/decode fleets in closed form: laws that hold at every ratio."""

from __future__ import annotations

import numpy as np
import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.serving.estimate import Context
from models.workload import Workload
from planner.fleets.pool_rates import PoolRates, Upstream, solve_rates
from planner.fleets.role_servers import DecodeTable, decode_table
from planner.plans.make import PlanQuestion
from planner.plans.space import layouts

CLIENTS, BEFORE_S = 256, 0.5


@pytest.fixture(scope="module")
def context() -> Context:
    return PlanQuestion(
        hardware=hardware_from_catalogue("h200x8"), arch=deepseek_r1(), version=Version("0.5.23"), isl=4000, osl=500,
        concurrency=CLIENTS,
    ).context()  # fmt: skip


@pytest.fixture(scope="module")
def decode(context: Context) -> DecodeTable:
    shapes = list(layouts(context.machine, context.version))
    found = decode_table(context, shapes, Workload.checked(4000, 500, CLIENTS), depths=(0, 2), counts=range(1, 8))
    assert found is not None
    return found


def solved(context: Context, decode: DecodeTable, prefill_rate: float) -> PoolRates:
    one = np.ones_like(decode.servers)
    upstream = Upstream(most_requests_s=prefill_rate * one, before_s=BEFORE_S * one)
    return solve_rates(context, decode, upstream, Workload.checked(4000, 500, CLIENTS))


def test_all_clients_are_in_flight_whatever_limits(context: Context, decode: DecodeTable) -> None:
    for prefill_rate in (2.0, 1e6):
        rates = solved(context, decode, prefill_rate)
        assert rates.requests_s * rates.e2e_s == pytest.approx(np.full(len(decode.configs), CLIENTS), rel=0.02)


def test_a_fleet_starved_of_prefill_delivers_what_prefill_gives(context: Context, decode: DecodeTable) -> None:
    starved, fed = solved(context, decode, 2.0), solved(context, decode, 1e6)
    assert np.all(starved.requests_s <= 2.0)
    assert np.all(starved.ttft_s > fed.ttft_s)
    assert np.all(starved.tpot_s <= fed.tpot_s * 1.0001), "a smaller batch decodes no slower"


def test_every_row_keeps_memory_free_and_holds_its_share(context: Context, decode: DecodeTable) -> None:
    assert {int(depth) for depth in decode.depth} == {0, 2}
    assert {int(servers) for servers in decode.servers} == set(range(1, 8))
    assert np.all(context.memory(decode.table).free > 0.0)
    assert np.all(decode.servers * decode.table.most_running >= CLIENTS)
