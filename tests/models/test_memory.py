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
from models.costs.memory import ledger_of, memory, weights
from models.layout import table_of
from models.machine import machine_of

R1 = deepseek_r1()
H200 = machine_of(hardware_from_catalogue("h200x8"))


@pytest.mark.parametrize(
    ("changes", "version", "gib"),
    [
        ({}, "0.5.12", 79.53),
        ({}, "0.4.5.post3", 81.64),  # SGLang's log: "mem usage=81.64 GB" on 8xH200
        ({"tp_size": 16}, "0.5.12", 40.30),
        ({"attn_dp_size": 8}, "0.5.12", 91.26),
        ({"attn_dp_size": 8, "ep_size": 8, "moe_a2a_backend": "deepep"}, "0.5.12", 93.34),
        ({"tp_size": 16, "attn_dp_size": 16, "ep_size": 16, "moe_a2a_backend": "deepep"}, "0.5.12", 55.09),
        ({"speculative": Speculative.chain(1)}, "0.5.12", 81.08),
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
