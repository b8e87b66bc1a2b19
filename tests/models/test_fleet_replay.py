"""A prefill/decode fleet in virtual time: laws that hold whatever the figures are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from models.config import ServerConfig
from models.layout import table_of
from models.serving.estimate import Context, limits_of
from models.serving.fleet_replay import FleetLoad, FleetModel, FleetReplay, Limit, Transfer, replay_fleet
from models.serving.prefill_server import prefill_server, run_pass
from models.serving.request import Request
from models.serving.role_times import DecodeTimes, PrefillModel, PrefillTimes, ServerModel, decode_context, decode_role
from models.serving.step_times import StepTimes

MakeContext = Callable[..., Context]
FAST = Transfer(latency_s=0.0, bytes_per_token=70_272.0, bytes_s=1e15)


def server(context: Context, most: int, kv_tokens: int = 600_000) -> ServerModel:
    config = ServerConfig(
        tp_size=8, mem_fraction_static=0.85, max_running_requests=most, chunked_prefill_size=8192,
        cuda_graph_max_bs_decode=256, context_length=163_840, scheduler_recv_interval=1,
    )  # fmt: skip
    table = table_of([config])
    times = StepTimes(context.system(table), acceptance=0.0, largest_batch=most)
    return ServerModel(times=times, limits=limits_of(config, table, kv_tokens))


def prefilling(context: Context, most: int) -> PrefillModel:
    made = server(context, most)
    return PrefillModel(times=PrefillTimes(made.times), limits=made.limits)


@pytest.fixture
def fleet(context: MakeContext) -> FleetModel:
    made = context()
    return FleetModel(
        prefill=prefilling(made, 16),
        prefill_servers=1,
        decode=decode_role(server(made, 128), ServerConfig(tp_size=8), made),
        decode_servers=1,
        transfer=FAST,
    )


def run(model: FleetModel, clients: int, *, isl: int = 2000, osl: int = 200, waves: int = 5) -> FleetReplay:
    count = clients * waves
    load = FleetLoad(isl=np.full(count, isl), osl=np.full(count, osl), concurrency=clients)
    return replay_fleet(model, load, measure_from=count // waves)


def test_every_request_is_answered_and_littles_law_holds(fleet: FleetModel) -> None:
    clients = 32
    seen = run(fleet, clients, waves=10).seen
    assert len(seen.ttft_s) == clients * 9
    rate = len(seen.e2e_s) / seen.duration_s
    assert rate * float(seen.e2e_s.mean()) == pytest.approx(clients, rel=0.1)


def test_decode_is_never_held_up_by_prefill(fleet: FleetModel) -> None:
    """The TPOT of a decode server is the pure step at the batch it holds."""
    played = run(fleet, 16)
    step_s = fleet.decode.times.decode_s(max(1, round(played.decode_batch)), 2100.0)
    assert float(played.seen.tpot_s.mean()) == pytest.approx(step_s, rel=0.15)


def test_too_few_prefill_servers_starve_the_decode_servers(fleet: FleetModel) -> None:
    starved = run(replace(fleet, decode_servers=4), 256, isl=8000, waves=4)
    fed = run(replace(fleet, decode_servers=4, prefill_servers=4), 256, isl=8000, waves=4)
    assert starved.limit is Limit.PREFILL
    assert float(starved.seen.ttft_s.mean()) > 2.0 * float(fed.seen.ttft_s.mean())
    assert fed.seen.output_tok_s > 1.5 * starved.seen.output_tok_s


def test_a_slow_transfer_shows_in_the_first_token_and_nowhere_else(fleet: FleetModel) -> None:
    slow = replace(fleet, transfer=Transfer(latency_s=2.0, bytes_per_token=70_272.0, bytes_s=1e15))
    quick, late = run(fleet, 4), run(slow, 4)
    assert float(late.seen.ttft_s.mean() - quick.seen.ttft_s.mean()) == pytest.approx(2.0, rel=0.1)
    assert float(late.seen.tpot_s.mean()) == pytest.approx(float(quick.seen.tpot_s.mean()), rel=0.05)
    assert late.limit is Limit.TRANSFER


def test_clients_beyond_the_slots_of_decode_wait_for_their_first_token(fleet: FleetModel, context: MakeContext) -> None:
    capped = replace(fleet, decode=server(context(), 8))
    played = run(capped, 32)
    assert played.decode_batch <= 8.001
    assert played.limit is Limit.CAP
    assert float(played.seen.ttft_s.mean()) > 1.0


def test_more_servers_never_give_less(fleet: FleetModel) -> None:
    rates = [run(replace(fleet, prefill_servers=n, decode_servers=n), 64).seen.output_tok_s for n in (1, 2, 4)]
    assert rates == sorted(rates)


def test_arrivals_at_a_rate_are_answered_at_that_rate(fleet: FleetModel) -> None:
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(0.5, size=400))
    load = FleetLoad(isl=np.full(400, 2000), osl=np.full(400, 200), concurrency=400, arrivals_s=arrivals)
    played = replay_fleet(fleet, load, measure_from=100)
    assert played.seen.output_tok_s == pytest.approx(2.0 * 200, rel=0.15)


def test_a_capped_prefill_server_keeps_slots_until_the_cache_has_arrived(fleet: FleetModel) -> None:
    """One slot at a time: a request takes its pass and its transfer before the next begins."""
    slow = replace(FAST, latency_s=0.5)
    capped = replace(fleet.prefill, limits=replace(fleet.prefill.limits, max_running=1))
    held = run(replace(fleet, prefill=capped, transfer=slow), 16)
    free = run(replace(fleet, transfer=slow), 16)
    each_s = held.seen.duration_s / len(held.seen.ttft_s)
    assert each_s > 0.5
    assert free.seen.output_tok_s > 1.5 * held.seen.output_tok_s


def test_arrivals_through_the_servers_own_network_slow_the_others_not_the_first_token(fleet: FleetModel) -> None:
    quiet, shared = (
        replace(fleet, decode=replace(fleet.decode, times=DecodeTimes(fleet.decode.times, shares_network=shared)))
        for shared in (False, True)
    )
    apart, together = run(quiet, 8), run(shared, 8)
    assert together.seen.tpot_s.mean() > 1.2 * apart.seen.tpot_s.mean()
    alone = [float(run(model, 1).seen.ttft_s.mean()) for model in (quiet, shared)]
    assert alone[1] == pytest.approx(alone[0], rel=0.05)


def test_host_work_per_request_counts_for_short_prompts_only(fleet: FleetModel, context: MakeContext) -> None:
    role, plain = fleet.prefill.times, server(context(), 16).times
    short = role.prefill_s(8, 8 * 200, 8 * 200 * 100) / plain.prefill_s(8, 8 * 200, 8 * 200 * 100)
    long = role.prefill_s(1, 8000, 8000 * 4000) / plain.prefill_s(1, 8000, 8000 * 4000)
    assert short > 1.2
    assert 1.0 < long < 1.1


def ranked(context: Context, ranks: int, most: int, chunk: int = 65_536) -> PrefillModel:
    """A prefill server of eight GPUs with attention DP."""
    config = ServerConfig(
        tp_size=8, attn_dp_size=ranks, mem_fraction_static=0.85, max_running_requests=most, chunked_prefill_size=chunk,
        cuda_graph_max_bs_decode=256, context_length=163_840, scheduler_recv_interval=1,
    )  # fmt: skip
    table = table_of([config])
    times = StepTimes(context.system(table), acceptance=0.0, largest_batch=1)
    limits = limits_of(config, table, 4_000_000)
    return PrefillModel(times=PrefillTimes(times), limits=replace(limits, max_prefill=ranks * limits.max_prefill))


def test_a_pass_over_ranks_takes_as_long_as_its_busiest(context: MakeContext) -> None:
    """Eight prompts on one rank take longer than one on each: attention and host work are not shared."""
    times = ranked(context(), 8, 128).times
    even = times.pass_s(8 * 8000, 8000, 8000 * 4000, 1)
    uneven = times.pass_s(8 * 8000, 8 * 8000, 8 * 8000 * 4000, 8)
    assert uneven > 1.3 * even
    assert even == pytest.approx(times.prefill_s(8, 8 * 8000, 8 * 8000 * 4000), rel=0.01)


def test_requests_meet_on_ranks_by_chance(context: MakeContext, fleet: FleetModel) -> None:
    """Where every rank takes one prompt a pass, two prompts of one rank take two passes."""
    prefill = ranked(context(), 8, 8)
    alone = run(replace(fleet, prefill=prefill), 1, isl=8000).seen.ttft_s
    together = run(replace(fleet, prefill=prefill), 8, isl=8000, waves=20).seen.ttft_s
    assert float(together.max()) > 1.8 * float(alone.mean())


def test_a_prompt_longer_than_a_ranks_chunk_takes_several_passes(context: MakeContext) -> None:
    """A chunk of 16,384 is 2,048 a rank: 16,000 tokens take eight passes of it."""
    model = ranked(context(), 8, 128, 16_384)
    prefilling_server = prefill_server(model.times, model.limits)
    prefilling_server.arrive(Request(0, 16_000, 1, 0.0, 0.0, prompt=16_000))
    passes = [len(run_pass(prefilling_server)) for _ in range(8)]
    assert passes == [0] * 7 + [1]


def test_ranks_of_deepep_wait_alike_however_many_a_rack_joins(context: MakeContext) -> None:
    rack = context("8xgb200x4", "0.5.8")
    waits = []
    for ranks in (8, 32):
        config = ServerConfig(
            tp_size=ranks, attn_dp_size=ranks, ep_size=ranks, nnodes=ranks // 4, moe_a2a_backend="deepep",
        )  # fmt: skip
        of_role = decode_context(rack, config).engine.parameters.ep_layer_us
        waits.append(of_role * max(1.0, np.log2(ranks)) / 3.0)
    assert waits[0] == pytest.approx(waits[1])
    assert waits[0] < rack.engine.parameters.ep_layer_us


def test_a_replay_takes_microseconds_a_request(fleet: FleetModel) -> None:
    """100,000 requests take at most 10 s: a tenth of them here, with time to spare for a slow machine."""
    began = time.process_time()
    run(replace(fleet, prefill_servers=4, decode_servers=12), 1000, waves=10)
    assert time.process_time() - began < 3.0
