"""Decode steps against reference values of the same equations, and physical laws."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from typical import filled

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture import deepseek_r1
from models.config import Speculative
from models.costs.decode import COSTS, DecodeStep, decode_step
from models.costs.kernels import distinct_experts
from models.costs.system import System
from models.engine.profile import EngineParameters
from models.engine.versions import profile_for
from models.layout import ConfigTable, table_of
from models.machine import Machine, machine_of

R1 = deepseek_r1()
H200 = machine_of(hardware_from_catalogue("h200x8"))
REFERENCE = Path(__file__).parent.parent / "golden" / "decode_reference.csv"
# Expert skew and parameters each reference profile was evaluated with.
SIGMA = {"0.5.12": 1.2, "0.4.5": 0.45}
REFERENCE_ENGINE = {
    version: EngineParameters(
        tau_us=tau_us, eta_w=eta_w, eta_pf=1.0, t_pf0_ms=100.0, eta_kv=eta_kv, mla_floor_us=9.0, token_us=0.3,
        host_ms=0.5, ep_layer_us=0.0, dp_layer_us=0.0,
    )
    for version, tau_us, eta_w, eta_kv in (("0.5.12", 2.5, 0.77, 0.86), ("0.4.5", 7.0, 0.73, 0.85))
}  # fmt: skip


def table(**changes: object) -> ConfigTable:
    return table_of([filled(**{"cuda_graph_max_bs_decode": 512, **changes})])


def step(
    machine: Machine, config: ConfigTable, engine: EngineParameters, batch: float, context: float, sigma: float
) -> DecodeStep:
    system = System(arch=R1, machine=machine, table=config, engine=engine, sigma=sigma)
    return decode_step(system, np.array([batch]), np.array([context]))


def step_ms(machine: Machine, config: ConfigTable, batch: float, context: float, version: str = "0.5.12") -> float:
    engine = profile_for(Version(version)).parameters
    return float(step(machine, config, engine, batch, context, 0.8).total[0]) * 1e3


def reference_rows() -> list[dict[str, str]]:
    with REFERENCE.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("row", reference_rows(), ids=lambda r: "-".join(list(r.values())[:7]))
def test_reference_equations(row: dict[str, str]) -> None:
    """The reference sums kernels only: no rank synchronisation, and a replicated head under attention DP."""
    engine = REFERENCE_ENGINE[row["profile"]]
    config = table(
        attn_dp_size=int(row["attn_dp"]),
        ep_size=int(row["ep"]),
        moe_a2a_backend="deepep" if int(row["ep"]) > 1 else "none",
        enable_dp_lm_head=int(row["attn_dp"]) > 1,
    )
    machine = machine_of(hardware_from_catalogue(row["gpu"].lower() + "x8"))
    batch, context = float(row["batch"]), float(row["context"])
    found = step(machine, config, engine, batch, context, SIGMA[row["profile"]]).total[0] * 1e3
    assert found == pytest.approx(float(row["step_ms"]), rel=0.03)


def test_reference_is_met_within_one_percent_on_average() -> None:
    errors = []
    for row in reference_rows():
        if row["attn_dp"] != "1":
            continue
        engine = REFERENCE_ENGINE[row["profile"]]
        machine = machine_of(hardware_from_catalogue(row["gpu"].lower() + "x8"))
        batch, context = float(row["batch"]), float(row["context"])
        found = step(machine, table(), engine, batch, context, SIGMA[row["profile"]]).total[0] * 1e3
        errors.append(abs(found / float(row["step_ms"]) - 1.0))
    assert len(errors) == 60
    assert np.mean(errors) < 0.01


layouts = st.sampled_from(
    [
        {},
        {"attn_dp_size": 4},
        {"attn_dp_size": 8},
        {"ep_size": 8},
        {"attn_dp_size": 8, "ep_size": 8, "moe_a2a_backend": "deepep"},
        {"speculative": Speculative.chain(2)},
        {"tp_size": 4, "pp_size": 2},
    ]
)
batches = st.floats(1.0, 2048.0)
contexts = st.floats(1.0, 30000.0)
factors = st.floats(1.0, 4.0)


@given(layouts, batches, contexts)
def test_the_breakdown_sums_to_the_step(layout: dict[str, object], batch: float, context: float) -> None:
    engine = profile_for(Version("0.5.12")).parameters
    found = step(H200, table(**layout), engine, batch, context, 0.8)
    parts = {name: float(values[0]) for name, values in found.parts_ms().items()}
    assert set(parts) == set(COSTS)
    assert min(parts.values()) >= 0.0
    assert sum(parts.values()) == pytest.approx(float(found.total[0]) * 1e3, rel=1e-9)


@settings(max_examples=60)
@given(
    layouts, batches, contexts, factors, st.sampled_from(["hbm_bytes_s", "nvlink_bytes_s", "bf16_flops", "fp8_flops"])
)
def test_a_faster_machine_is_never_slower(
    layout: dict[str, object], batch: float, context: float, factor: float, quantity: str
) -> None:
    faster = replace(H200, **{quantity: getattr(H200, quantity) * factor})
    config = table(**layout)
    assert step_ms(faster, config, batch, context) <= step_ms(H200, config, batch, context) * (1 + 1e-9)


@given(layouts, batches, contexts, factors, factors)
def test_more_work_never_takes_less_time(
    layout: dict[str, object], batch: float, context: float, more: float, longer: float
) -> None:
    config = table(**layout)
    before = step_ms(H200, config, batch, context)
    assert step_ms(H200, config, batch * more, context) >= before * (1 - 1e-9)
    assert step_ms(H200, config, batch, context * longer) >= before * (1 - 1e-9)


@given(st.sampled_from(["0.4.3", "0.4.5", "0.5.7", "0.5.12"]), st.floats(1.0, 256.0))
def test_never_below_the_roofline_of_the_weights(version: str, batch: float) -> None:
    """One step streams at least the weights that one token needs, sharded over eight GPUs."""
    roofline_ms = R1.active_gemm_params / 8 / H200.hbm_bytes_s * 1e3
    assert step_ms(H200, table(), batch, 100.0, version) > roofline_ms


def test_beyond_the_captured_graphs_the_cpu_launches_every_kernel() -> None:
    captured = step_ms(H200, table(cuda_graph_max_bs_decode=64), 64, 1000)
    eager = step_ms(H200, table(cuda_graph_max_bs_decode=64), 65, 1000)
    assert eager >= profile_for(Version("0.5.12")).parameters.t_pf0_ms > captured


@given(st.floats(0.0, 2.5), st.floats(1.0, 4096.0), factors)
def test_distinct_experts_grow_and_stay_within_bounds(sigma: float, tokens: float, more: float) -> None:
    few = float(distinct_experts(np.array([tokens]), 256, 8, sigma)[0])
    many = float(distinct_experts(np.array([tokens * more]), 256, 8, sigma)[0])
    assert few <= many + 1e-9
    assert many <= 256.0
    assert few <= 8.0 * tokens * 1.001


@pytest.mark.parametrize(("sigma", "expected"), [(0.0, (8, 31, 102, 222, 256)), (1.2, (8, 27, 77, 156, 225))])
def test_distinct_experts_against_known_values(sigma: float, expected: tuple[int, ...]) -> None:
    found = distinct_experts(np.array([1.0, 4.0, 16.0, 64.0, 256.0]), 256, 8, sigma)
    assert np.allclose(found, expected, atol=1.0)


def test_skewed_popularity_touches_fewer_experts() -> None:
    tokens = np.array([32.0])
    assert distinct_experts(tokens, 256, 8, 1.2)[0] < distinct_experts(tokens, 256, 8, 0.4)[0]


def roofline_s(machine: Machine, context: float, batch: float) -> float:
    """What no build can beat: one token's experts and the KV cache once, over all GPUs, at full speed."""
    weights = R1.moe_layers * (R1.num_experts_per_tok + R1.n_shared_experts) * R1.expert_params / 8
    return (weights + batch / 8 * context * R1.num_hidden_layers * R1.latent_width * 2) / machine.hbm_bytes_s


@given(layouts, batches, contexts)
def test_a_step_is_never_faster_than_the_roofline(changes: dict[str, object], batch: float, context: float) -> None:
    engine = profile_for(Version("0.5.12")).parameters
    found = step(H200, table(**changes), engine, batch, context, 0.45).total[0]
    assert found > roofline_s(H200, context, batch)


@given(batches, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_tokens_that_choose_alike_touch_fewer_experts(batch: float, one: float, other: float) -> None:
    engine = profile_for(Version("0.5.12")).parameters

    def experts_s(independence: float) -> float:
        config = table()
        system = System(arch=R1, machine=H200, table=config, engine=engine, sigma=0.4, independence=independence)
        return float(decode_step(system, np.array([batch]), np.array([1000.0])).total[0])

    assert experts_s(min(one, other)) <= experts_s(max(one, other)) * 1.001
