"""The ledger against published logs, and laws that hold for every machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from typical import filled

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.config import Speculative
from models.costs.memory import ledger_of, memory
from models.costs.weights import weights
from models.layout import table_of
from models.machine import Machine, machine_of

R1 = deepseek_r1()
H200 = machine_of(hardware_from_catalogue("h200x8"))


@pytest.mark.parametrize(
    ("changes", "version", "gib"),
    [
        ({}, "0.5.12", 79.68),
        ({}, "0.4.5.post3", 81.64),  # SGLang's log: "mem usage=81.64 GB" on 8xH200
        ({"tp_size": 16}, "0.5.12", 40.45),
        ({"attn_dp_size": 8}, "0.5.12", 91.41),
        ({"attn_dp_size": 8, "ep_size": 8, "moe_a2a_backend": "deepep"}, "0.5.12", 93.49),
        ({"tp_size": 16, "attn_dp_size": 16, "ep_size": 16, "moe_a2a_backend": "deepep"}, "0.5.12", 55.24),
        ({"speculative": Speculative.chain(1)}, "0.5.12", 81.23),
    ],
)
def test_weights_per_gpu(changes: dict[str, object], version: str, gib: float) -> None:
    total = weights(R1, table_of([filled(**changes)]), Version(version)).total[0]
    assert total == pytest.approx(gib, rel=0.001)


@pytest.mark.parametrize(
    ("fraction", "version", "logged"), [(0.9074, "0.4.5.post3", 654_280), (0.81, "0.4.5.post2", 448_804)]
)
def test_kv_tokens_of_logged_runs(fraction: float, version: str, logged: int) -> None:
    table = table_of([filled(mem_fraction_static=fraction)])
    known = memory(R1, H200, table, Version(version), free_before_load_gib=137.24).kv_tokens[0]
    assert known == pytest.approx(logged, rel=0.01)
    catalogue_alone = memory(R1, H200, table, Version(version)).kv_tokens[0]
    assert catalogue_alone == pytest.approx(logged, rel=0.03)


# Free GiB before the load and KV tokens a rank as logs print them; "mem usage" of the weights where they do.
MI308X = replace(machine_of(hardware_from_catalogue("mi300xx8")), memory_gib=192.0)
WIDE = {
    "attn_dp_size": 8,
    "ep_size": 8,
    "moe_a2a_backend": "deepep",
    "enable_dp_lm_head": True,
    "extra": (("ep_num_redundant_experts", 32), ("moe_dense_tp_size", 1)),
}


@pytest.mark.parametrize(
    ("changes", "machine", "version", "gib"),
    [
        ({}, H200, "0.4.5.post3", 81.64),  # 8xH200
        (WIDE, H200, "0.4.6.post4", 105.59),  # one node of attention DP 8, a log in sglang issue 6017
        ({}, MI308X, "0.4.6", 81.66),  # eight MI308X, sglang issue 6001
    ],
)
def test_weights_of_logged_runs(changes: dict[str, object], machine: Machine, version: str, gib: float) -> None:
    total = weights(R1, table_of([filled(**changes)]), Version(version), machine).total[0]
    assert total == pytest.approx(gib, rel=0.002)


def test_kv_tokens_of_attention_dp_are_those_of_its_log() -> None:
    """137.46 GiB free before the load and fraction 0.845, the only one that gives the logged 10.57 GiB."""
    table = table_of([filled(mem_fraction_static=0.845, **WIDE)])
    found = memory(R1, H200, table, Version("0.4.6.post4"), free_before_load_gib=137.46)
    assert found.kv_tokens_per_rank[0] == pytest.approx(161_488, rel=0.02)


def test_kv_tokens_on_amd_follow_from_the_logged_free_memory() -> None:
    """185.33 GiB before the load less 81.66 of weights: at fraction 0.9 85.14 GiB of cache."""
    table = table_of([filled(mem_fraction_static=0.9)])
    found = memory(R1, MI308X, table, Version("0.4.6"), free_before_load_gib=185.33)
    assert found.kv_tokens[0] == pytest.approx((185.33 * 0.9 - 81.66) * 2**30 / 70_272, rel=0.002)


def test_the_head_is_whole_on_every_rank_until_0_4_4() -> None:
    table = table_of([filled(attn_dp_size=8)])
    heads = {v: float(weights(R1, table, Version(v)).lm_head[0]) for v in ("0.4.4", "0.4.4.post1", "0.5.12")}
    assert heads["0.4.4"] == pytest.approx(1.73, abs=0.01)
    assert heads["0.4.4.post1"] == heads["0.5.12"] == pytest.approx(0.22, abs=0.01)


def test_activations_follow_a_rank_s_own_tokens_under_an_all_to_all_backend() -> None:
    """524,288 tokens over 32 ranks are 16,384 of each: 8 GiB at most, not half a MiB for every one of them."""
    wide = filled(tp_size=32, attn_dp_size=32, ep_size=32, nnodes=4, moe_a2a_backend="deepep",
                  chunked_prefill_size=524_288, extra=(("disaggregation_mode", "prefill"),))  # fmt: skip
    found = memory(R1, H200, table_of([wide]), Version("0.5.1"))
    assert 3.0 < found.activations[0] < 8.0
    assert found.graphs[0] == 0.0
    assert found.buffers[0] > 0.0


def test_a_decode_server_holds_no_prefill_chunk() -> None:
    layout = {"tp_size": 16, "attn_dp_size": 16, "ep_size": 16, "nnodes": 2, "moe_a2a_backend": "deepep"}
    decode = filled(**layout, chunked_prefill_size=262_144, extra=(("disaggregation_mode", "decode"),))
    small = filled(**layout, chunked_prefill_size=16_384, extra=(("disaggregation_mode", "decode"),))
    found = memory(R1, H200, table_of([decode, small]), Version("0.5.5")).activations
    assert found[0] == found[1] < 3.0


def test_without_an_all_to_all_backend_the_experts_see_the_tokens_of_all_ranks() -> None:
    """About 0.15 MiB a token: the outputs of eight experts and the shared one are the largest tensor."""
    chunks = [filled(attn_dp_size=8, chunked_prefill_size=chunk) for chunk in (8_192, 16_384)]
    found = memory(R1, H200, table_of(chunks), Version("0.5.8")).activations
    assert 0.12 < (found[1] - found[0]) * 1024 / 8_192 < 0.22


def test_the_first_capture_of_fa3_costs_five_gib_whatever_its_batch() -> None:
    sizes = [filled(cuda_graph_max_bs_decode=size) for size in (8, 512)]
    found = memory(R1, H200, table_of(sizes), Version("0.5.6")).graphs
    assert 5.0 <= found[0] <= 6.0
    assert found[0] < found[1] <= 6.5
    b200 = machine_of(hardware_from_catalogue("b200x8"))
    other = memory(R1, b200, table_of([filled(attention_backend="trtllm_mla")]), Version("0.5.6")).graphs
    assert other[0] < found[0]


def test_a_converted_fp8_cache_takes_one_layer_of_bf16() -> None:
    configs = [filled(kv_cache_dtype="fp8_e4m3", attention_backend=name) for name in ("fa3", "flashmla")]
    found = memory(R1, H200, table_of(configs), Version("0.5.5"))
    layer_gib = found.kv_tokens[0] * 576 * 2 / 2**30
    assert found.activations[0] > layer_gib
    assert found.activations[1] < layer_gib + 1.0
    assert found.activations[0] > found.activations[1] + 0.3


def test_attention_dp_gives_every_rank_its_own_pool() -> None:
    table = table_of([filled(attn_dp_size=8)])
    found = memory(R1, H200, table, Version("0.5.12"))
    assert found.kv_tokens[0] == 8 * found.kv_tokens_per_rank[0]


layouts = st.sampled_from(
    [
        {},
        {"attn_dp_size": 2},
        {"attn_dp_size": 8},
        {"ep_size": 8},
        {"tp_size": 4, "pp_size": 2},
        {"attn_dp_size": 8, "ep_size": 8, "moe_a2a_backend": "deepep"},
        {"speculative": Speculative.chain(3)},
    ]
)
fractions = st.floats(0.5, 0.95)
sizes = st.floats(60.0, 400.0)
versions = st.sampled_from(["0.4.3", "0.4.5", "0.5.5", "0.5.23"])


@given(layouts, fractions, sizes, versions)
def test_the_ledger_adds_up_to_the_card(layout: dict[str, object], fraction: float, gib: float, version: str) -> None:
    table = table_of([filled(mem_fraction_static=fraction, **layout)])
    found = memory(R1, replace(H200, memory_gib=gib), table, Version(version))
    ledger = ledger_of(found, table, 0)
    assert sum(ledger.per_gpu_gib.values()) == pytest.approx(gib, rel=1e-9)


@given(layouts, fractions, sizes, st.floats(0.0, 100.0), versions)
def test_more_memory_never_lowers_capacity(
    layout: dict[str, object], fraction: float, gib: float, more: float, version: str
) -> None:
    table = table_of([filled(mem_fraction_static=fraction, **layout)])
    small = memory(R1, replace(H200, memory_gib=gib), table, Version(version))
    large = memory(R1, replace(H200, memory_gib=gib + more), table, Version(version))
    assert large.kv_tokens[0] >= small.kv_tokens[0]
    assert large.free[0] >= small.free[0] - 1e-9
    assert large.shortage(2000, 1.0)[0] <= small.shortage(2000, 1.0)[0] + 1e-9


def test_one_row_of_many_is_the_row_alone() -> None:
    configs = [filled(), filled(attn_dp_size=8), filled(mem_fraction_static=0.7, cuda_graph_max_bs_decode=512)]
    together = memory(R1, H200, table_of(configs), Version("0.5.12"))
    for index, config in enumerate(configs):
        alone = memory(R1, H200, table_of([config]), Version("0.5.12"))
        assert together.kv_tokens[index] == alone.kv_tokens[0]
        assert np.isclose(together.free[index], alone.free[0])


@given(layouts, fractions, st.integers(1, 100_000), versions)
def test_a_configuration_that_holds_its_longest_request_lacks_nothing(
    layout: dict[str, object], fraction: float, longest: int, version: str
) -> None:
    table = table_of([filled(mem_fraction_static=fraction, **layout)])
    found = memory(R1, H200, table, Version(version))
    if found.free[0] >= 1.0 and found.kv_tokens_per_rank[0] >= longest:
        assert found.shortage(longest, 1.0)[0] <= 1e-9
