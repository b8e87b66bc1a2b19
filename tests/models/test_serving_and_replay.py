"""Closed form and event replay: they agree where they should, and conserve what must be conserved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import ServerConfig, Speculative
from models.layout import table_of
from models.serving import estimate
from models.serving.estimate import Context, predict, predict_many
from models.serving.replay import Replay, ReplayLoad, replay
from models.serving.scheduler import Limits
from models.workload import Workload
from planner.sglang.resolver import resolve

MakeContext = Callable[..., Context]


class ConstantTimes:
    """Step times a person can calculate with: 10 ms a decode step, 100 ms a prefill pass."""

    accepted = 1.0
    stages_at_work = 1.0
    fills_ranks = False
    front_end_s = 0.0
    front_end_token_s = 0.0
    poll_steps = 0.0
    overlap = False
    base_s = (0.0,) * 5000

    def decode_s(self, batch: int, context: float) -> float:
        return 0.010

    def prefill_s(self, prompts: int, new_tokens: float, pairs: float) -> float:
        return 0.100


def played(isl: list[int], osl: list[int], concurrency: int, **limits: int) -> Replay:
    bounds = Limits(**({"kv_tokens": 10**6, "max_running": 10**3, "chunk": 10**5} | limits))
    load = ReplayLoad(isl=np.array(isl), osl=np.array(osl), concurrency=concurrency)
    return replay(ConstantTimes(), bounds, load)  # type: ignore[arg-type]


def test_one_request_by_hand() -> None:
    found = played([100], [11], concurrency=1)
    assert found.ttft_s.tolist() == pytest.approx([0.100])
    assert found.tpot_s.tolist() == pytest.approx([0.010])
    assert found.e2e_s.tolist() == pytest.approx([0.200])


def test_a_batch_shares_its_steps() -> None:
    found = played([100] * 4, [11] * 4, concurrency=4)
    assert found.duration_s == pytest.approx(0.200)
    assert found.output_tok_s == pytest.approx(44 / 0.200)


def test_tokens_of_a_step_beyond_the_last_one_asked_for_are_not_output() -> None:
    """A step of four tokens ends a request that had one to go: three of them are nobody's."""
    times = ConstantTimes()
    times.accepted = 4.0
    bounds = Limits(kv_tokens=10**6, max_running=10, chunk=10**5)
    load = ReplayLoad(isl=np.array([100]), osl=np.array([4]), concurrency=1)
    found = replay(times, bounds, load)  # type: ignore[arg-type]
    assert found.output_tok_s == pytest.approx(4 / 0.110)


@pytest.mark.parametrize(("clients", "ratio"), [(1024, 1.0), (2048, 1.0), (8, 0.5)])
def test_the_rate_of_a_closed_loop_is_that_of_a_long_one(
    context: MakeContext, monkeypatch: pytest.MonkeyPatch, clients: int, ratio: float
) -> None:
    """However few waves of clients are replayed: they neither stop sending at the end nor are cut within a wave."""
    belief = context()
    typed = ServerConfig(tp_size=8, attn_dp_size=4, ep_size=8, speculative=Speculative.chain(1))
    config = resolve(replace(typed, max_running_requests=clients), belief.arch, belief.machine, belief.version).config
    workload = Workload.checked(1000, 200, clients, ratio)
    short = predict(belief, config, workload)
    monkeypatch.setattr(estimate, "REPLAY_WAVES", 12)
    monkeypatch.setattr(estimate, "LONGEST_REPLAY", 10**6)
    monkeypatch.setattr(estimate, "LEAST_OF_LENGTHS", 4000)
    long = predict(belief, config, workload)
    assert short.output_tok_s == pytest.approx(long.output_tok_s, rel=0.02)
    assert short.request_rate * short.e2e_ms["mean"] / 1e3 == pytest.approx(clients, rel=0.02), "Little's law"


def test_a_newcomer_stalls_those_who_decode() -> None:
    """Two clients, three requests: the third is prefilled while the longer first one decodes."""
    found = played([100, 100, 100], [31, 11, 11], concurrency=2)
    by_length = dict(zip(found.osl.tolist(), found.tpot_s.tolist(), strict=True))
    assert by_length[31.0] == pytest.approx((30 * 0.010 + 0.100) / 30)


def test_a_long_prompt_takes_several_passes() -> None:
    found = played([1000], [2], concurrency=1, chunk=300)
    assert found.ttft_s.tolist() == pytest.approx([0.400])


def test_overlap_makes_a_newcomer_wait_for_one_step_more() -> None:
    """The client answers 5 ms after the step that finished its request: plain, its next one waits for the end of
    the step in progress; with overlap the step after that is already decided."""

    class Times(ConstantTimes):
        front_end_s = 0.0025

    class Overlapped(Times):
        overlap = True

    def second_ttft_s(times: ConstantTimes) -> float:
        bounds = Limits(kv_tokens=10**6, max_running=10, chunk=10**5)
        load = ReplayLoad(isl=np.array([10, 10, 10]), osl=np.array([100, 11, 11]), concurrency=2)
        found = replay(times, bounds, load)  # type: ignore[arg-type]
        return float(found.ttft_s[1])

    assert second_ttft_s(Overlapped()) == pytest.approx(second_ttft_s(Times()) + 0.010)


def test_open_loop_sends_when_planned() -> None:
    bounds = Limits(kv_tokens=10**6, max_running=10, chunk=10**5)
    sent_s = np.array([0.0, 1.0, 2.0])
    load = ReplayLoad(isl=np.array([10] * 3), osl=np.array([2] * 3), concurrency=3, arrivals_s=sent_s)
    found = replay(ConstantTimes(), bounds, load)  # type: ignore[arg-type]
    assert found.ttft_s.tolist() == pytest.approx([0.1, 0.1, 0.1])
    assert found.finish_s.tolist() == pytest.approx([0.11, 1.11, 2.11])


def test_max_running_makes_the_rest_wait() -> None:
    found = played([100] * 4, [11] * 4, concurrency=4, max_running=2)
    assert sorted(found.ttft_s.tolist()) == pytest.approx([0.1, 0.1, 0.3, 0.3])


def test_a_full_cache_retracts_and_still_finishes_everybody() -> None:
    found = played([100] * 8, [400] * 8, concurrency=8, kv_tokens=1500)
    assert found.retractions > 0
    assert len(found.e2e_s) == 8
    assert found.peak_kv_tokens <= 1500 + 8


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 600)), min_size=1, max_size=60),
    st.integers(1, 32),
    st.integers(4000, 20000),
    st.integers(1, 16),
    st.integers(64, 4096),
)
def test_every_request_finishes_once_and_in_order(
    lengths: list[tuple[int, int]], concurrency: int, kv_tokens: int, max_running: int, chunk: int
) -> None:
    isl, osl = [i for i, _ in lengths], [o for _, o in lengths]
    found = played(isl, osl, concurrency, kv_tokens=kv_tokens, max_running=max_running, chunk=chunk)
    assert sorted(found.osl.tolist()) == sorted(map(float, osl))
    assert np.all(found.ttft_s > 0)
    assert np.all(found.e2e_s >= found.ttft_s - 1e-9)
    assert np.all(np.diff(found.finish_s) >= 0)
    assert found.mean_running <= min(concurrency, max_running) + 1e-6
    assert found.peak_kv_tokens <= kv_tokens + max_running + 1


def random_tokens(context: Context) -> Context:
    """The context of a benchmark that sends random tokens."""
    return replace(context, sigma=context.engine.sigma, independence=context.engine.random_independence)


def resolved(context: Context, **changes: object) -> ServerConfig:
    return resolve(ServerConfig(tp_size=8, **changes), context.arch, context.machine, context.version).config


@pytest.mark.parametrize("clients", [1, 4, 16, 64])
def test_closed_form_and_replay_agree_where_nothing_queues(context: MakeContext, clients: int) -> None:
    where = context()
    workload = Workload.checked(1024, 1024, clients, 0.8)
    table = table_of([resolved(where)])
    steady = predict_many(where, table, workload, where.memory(table))
    exact = predict(where, resolved(where), workload)
    assert float(steady.tpot_s[0]) * 1e3 == pytest.approx(exact.tpot_ms["mean"], rel=0.06)
    assert float(steady.output_tok_s[0]) == pytest.approx(exact.output_tok_s, rel=0.06)


@pytest.mark.parametrize(
    ("version", "concurrency", "isl", "osl", "tpot_ms"),
    [
        # Median TPOT of published 8xH200 TP8 sweeps (random tokens, lengths uniform in [0.8 L, L]).
        ("0.5.12", 4, 1024, 1024, 9.73),
        ("0.5.12", 64, 1024, 1024, 30.52),
        ("0.5.7", 16, 1024, 8192, 16.25),
        ("0.5.5", 64, 1024, 1024, 32.07),
        ("0.5.5", 16, 8192, 1024, 22.18),
    ],
)
def test_published_points(
    context: MakeContext, version: str, concurrency: int, isl: int, osl: int, tpot_ms: float
) -> None:
    where = random_tokens(context(version=version))
    config = resolved(
        where, mem_fraction_static=0.82, chunked_prefill_size=32768, max_running_requests=512,
        cuda_graph_max_bs_decode=512, max_prefill_tokens=32768,
    )  # fmt: skip
    found = predict(where, config, Workload.checked(isl, osl, concurrency, 0.8))
    assert found.tpot_ms["p50"] == pytest.approx(tpot_ms, rel=0.05)


def test_throughput_rises_with_clients_until_a_named_limit(context: MakeContext) -> None:
    where = context()
    rates = [
        predict(where, resolved(where), Workload.checked(1000, 1000, clients)).output_tok_s
        for clients in (1, 4, 16, 64, 256)
    ]
    assert rates == sorted(rates)
    crowded = predict(where, resolved(where), Workload.checked(1000, 1000, 1024))
    assert crowded.limiting == "KV cache capacity"
    assert crowded.running_requests < 1024


def test_mtp_helps_by_its_acceptance(context: MakeContext) -> None:
    workload = Workload.checked(1000, 1000, 1)
    speeds = []
    for acceptance in (0.0, 0.5, 0.9):
        where = context(acceptance=acceptance)
        config = resolved(where, speculative=Speculative.chain(2), max_running_requests=8)
        speeds.append(predict(where, config, workload).user_tok_s)
    plain = predict(context(), resolved(context()), workload).user_tok_s
    assert speeds == sorted(speeds)
    assert speeds[0] < plain < speeds[2]


def test_band_contains_the_prediction_and_widens_with_ignorance(context: MakeContext) -> None:
    workload = Workload.checked(1000, 1000, 16)
    known, unknown = (context(version=version) for version in ("0.5.12", "0.5.23"))
    narrow, wide = (predict(where, resolved(where), workload) for where in (known, unknown))
    for found in (narrow, wide):
        low, high = found.band["output_tok_s"]
        assert low < found.output_tok_s < high
    assert wide.band["output_tok_s"][1] / wide.output_tok_s > narrow.band["output_tok_s"][1] / narrow.output_tok_s


def test_same_question_same_answer(context: MakeContext) -> None:
    where = context()
    workload = Workload.checked(1000, 1000, 32, 0.5)
    assert predict(where, resolved(where), workload) == predict(where, resolved(where), workload)
    other = predict(where, resolved(where), workload, seed=1)
    assert other != predict(where, resolved(where), workload)


@settings(max_examples=25)
@given(st.integers(1, 512), st.integers(16, 4000), st.integers(16, 4000), st.floats(1.0, 3.0))
def test_more_bandwidth_never_slows_serving(clients: int, isl: int, osl: int, factor: float) -> None:
    from packaging.version import Version

    from hwprobe.catalogue import hardware_from_catalogue
    from models.architecture import deepseek_r1
    from models.engine.versions import profile_for
    from models.machine import machine_of

    version = Version("0.5.12")
    where = Context(
        arch=deepseek_r1(),
        machine=machine_of(hardware_from_catalogue("h200x8")),
        engine=profile_for(version),
        version=version,
    )
    faster = replace(where, machine=replace(where.machine, hbm_bytes_s=where.machine.hbm_bytes_s * factor))
    table = table_of([resolved(where)])
    workload = Workload.checked(isl, osl, clients)
    slow, fast = (predict_many(at, table, workload, at.memory(table)) for at in (where, faster))
    assert fast.output_tok_s[0] >= slow.output_tok_s[0] * 0.999
    assert fast.step_s[0] <= slow.step_s[0] * 1.001
