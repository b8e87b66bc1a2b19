"""Slices of the model: the same equations with fewer layers, and the whole foretold from them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from typical import filled

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.errors import InputError
from models.architecture import ModelArchitecture, deepseek_r1
from models.costs.decode import decode_step
from models.costs.memory import ledger_of, memory
from models.costs.prefill import prefill_s
from models.costs.system import System
from models.engine.profile import EngineProfile
from models.engine.versions import profile_for
from models.layout import table_of
from models.machine import machine_of
from models.records.calibration import calibrate
from models.records.case import Case, expected
from models.records.points import Point
from models.records.slice_fit import FIGURES, predict_whole
from planner.point_case import case_of

R1 = deepseek_r1()
VERSION = Version("0.5.12")
ENGINE = profile_for(VERSION)
MACHINE = machine_of(hardware_from_catalogue("h200x8"))
LOADS = ((1, 128, 256), (16, 128, 256), (64, 128, 256), (1, 2048, 16))
LAYOUTS = [{}, {"attn_dp_size": 8}, {"attn_dp_size": 8, "ep_size": 8, "moe_a2a_backend": "deepep"}]


def system(arch: ModelArchitecture, **changes: object) -> System:
    table = table_of([filled(**{"cuda_graph_max_bs_decode": 512, **changes})])
    return System(arch=arch, machine=MACHINE, table=table, engine=ENGINE.parameters, sigma=0.4)


def step_s(arch: ModelArchitecture, batch: float, **changes: object) -> float:
    return float(decode_step(system(arch, **changes), np.array([batch]), np.array([1500.0])).total[0])


def test_all_layers_are_the_model_itself() -> None:
    assert R1.sliced(61) is R1
    assert R1.sliced(61, 3) is R1
    again = R1.sliced(20).sliced(4)
    assert (again.num_hidden_layers, again.dense_layers, again.moe_layers, again.sliced_from) == (4, 3, 1, 61)
    assert R1.sliced(4, 1).moe_layers == 3
    assert R1.sliced(2).dense_layers == 2


@pytest.mark.parametrize(("layers", "dense"), [(0, None), (62, None), (8, 4), (8, -1)])
def test_there_are_no_more_layers_than_there_are(layers: int, dense: int | None) -> None:
    with pytest.raises(InputError, match="a slice"):
        R1.sliced(layers, dense)


@given(layers=st.integers(4, 60))
def test_a_slice_keeps_embedding_and_head_and_drops_whole_layers(layers: int) -> None:
    slim = R1.sliced(layers)
    assert R1.total_params - slim.total_params == (61 - layers) * R1.moe_layer_params
    assert slim.embedding_params == R1.embedding_params
    assert slim.kv_bytes_per_token() * 61 == R1.kv_bytes_per_token() * layers


@pytest.mark.parametrize("changes", LAYOUTS)
@given(layers=st.integers(5, 60), batch=st.sampled_from([1.0, 8.0, 64.0, 400.0]))
def test_a_step_is_affine_in_moe_layers(changes: dict[str, object], layers: int, batch: float) -> None:
    first, here, last = (step_s(R1.sliced(n), batch, **changes) for n in (4, layers, 61))
    assert here == pytest.approx(first + (last - first) * (layers - 4) / 57, rel=1e-9)
    assert here < last


def test_dense_and_moe_layers_are_counted_apart() -> None:
    moe = step_s(R1.sliced(7), 32.0) - step_s(R1.sliced(6), 32.0)
    dense = step_s(R1.sliced(7, 3), 32.0) - step_s(R1.sliced(6, 2), 32.0)
    assert dense < 0.7 * moe
    assert step_s(R1.sliced(8, 1), 32.0) > step_s(R1.sliced(8, 3), 32.0)


@given(layers=st.integers(4, 60), tokens=st.sampled_from([64.0, 2048.0, 8192.0]))
def test_a_prefill_pass_shrinks_with_its_layers_launch_floor_and_all(layers: int, tokens: float) -> None:
    def pass_s(arch: ModelArchitecture) -> float:
        return float(prefill_s(system(arch), np.array([1.0]), np.array([tokens]), np.array([0.0]))[0])

    assert 0.7 * layers / 61 < pass_s(R1.sliced(layers)) / pass_s(R1) < 1.3 * layers / 61


def test_the_ledger_of_a_slice_adds_up_and_gives_its_weights_to_the_cache() -> None:
    table = table_of([filled()])
    whole, slim = (memory(arch, MACHINE, table, VERSION) for arch in (R1, R1.sliced(8)))
    ledger = ledger_of(slim, table, 0)
    assert math.isclose(sum(ledger.per_gpu_gib.values()), ledger.card_gib, rel_tol=1e-9)
    assert 6.5 < ledger.weights_gib < 8.5  # 5 of 58 MoE layers, and embedding and head whole
    assert slim.kv_tokens[0] > 10 * whole.kv_tokens[0]


def question(layers: int, clients: int, isl: int, osl: int, **more: object) -> Point:
    return Point(
        id=f"{layers}-{clients}-{isl}", gpu="H200", n_gpus=8, engine_version="0.5.12", tp=8, isl=isl, osl=osl,
        concurrency=clients, metric_kind="steady", num_hidden_layers=layers, load_format="dummy", **more,
    )  # fmt: skip


def measured(truth: EngineProfile, layers: tuple[int, ...], noise: float = 0.0, **more: object) -> list[Case]:
    rng = np.random.default_rng(7)
    found = []
    for point in (question(n, *load, **more) for n in layers for load in LOADS):
        case = case_of(point)
        seen = expected(replace(case, context=replace(case.context, engine=truth)))
        figures = {name: seen.figure(name) or 0.0 for name in FIGURES}
        figures = {name: value * math.exp(noise * rng.standard_normal()) for name, value in figures.items()}
        found.append(replace(case, measured=figures))
    return found


def changed(**factors: float) -> EngineProfile:
    moved = {name: getattr(ENGINE.parameters, name) * factor for name, factor in factors.items()}
    return replace(ENGINE, parameters=replace(ENGINE.parameters, **moved))


def test_two_slices_tell_the_fixed_cost_from_the_layers() -> None:
    truth = changed(tau_us=1.3, eta_w=0.85, host_ms=2.0)
    found = calibrate(measured(truth, (4, 8)), ENGINE)
    assert found.width <= 4.0
    for name in ("tau_us", "host_ms"):
        value = getattr(found.profile.parameters, name)
        assert value == pytest.approx(getattr(truth.parameters, name), rel=0.06), name
    assert {"tau_us", "host_ms"} <= {item.name for item in found.parameters if item.by_data}
    alone = calibrate(measured(truth, (4,)), ENGINE)
    assert "host_ms" not in {item.name for item in alone.parameters}


def test_the_whole_is_foretold_from_slices_within_its_band() -> None:
    truth = changed(tau_us=1.3, eta_w=0.85, host_ms=2.0)
    slices = measured(truth, (4, 12), noise=0.01)
    engine = calibrate(slices, ENGINE).profile
    whole = measured(truth, (61,))
    figures = predict_whole(slices, R1, engine)
    told = {(figure.run, figure.metric): figure for figure in figures}
    assert len(told) == len(LOADS) * len(FIGURES)
    for case in whole:
        for metric, value in case.measured.items():
            figure = told[case.run, metric]
            assert abs(math.log(figure.dummy / value)) < 2.0 * figure.deviation, (case.id, metric)
            if metric == "tpot_mean_ms":
                assert figure.dummy == pytest.approx(value, rel=0.06), case.id


def test_what_is_no_gpu_widens_the_prior_and_is_foretold_all_the_same() -> None:
    """Layers a hundred times as slow, a fixed cost of another kind: the figures of a CPU."""
    truth = changed(tau_us=60.0, host_ms=12.0, t_pf0_ms=20.0)
    slices = measured(truth, (4, 8), noise=0.01)
    found = calibrate(slices, ENGINE)
    assert found.width > 1.0
    whole = {case.run: case.measured["tpot_mean_ms"] for case in measured(truth, (16,))}
    for figure in predict_whole(slices, R1.sliced(16), found.profile):
        if figure.metric == "tpot_mean_ms":
            assert figure.dummy == pytest.approx(whole[figure.run], rel=0.08)


def test_dummy_weights_send_every_token_to_the_same_experts() -> None:
    """SGLang draws all of them from +-0.001: the router's logits drown in the correction bias."""
    rng = np.random.default_rng(1234)

    def drawn(*shape: int) -> np.ndarray:
        return rng.uniform(-1e-3, 1e-3, shape)

    hidden = rng.standard_normal((256, R1.hidden_size)) * drawn(R1.hidden_size)  # normalised, times the norm's weights
    scores = 1.0 / (1.0 + np.exp(-hidden @ drawn(R1.n_routed_experts, R1.hidden_size).T)) + drawn(R1.n_routed_experts)
    chosen = np.argsort(-scores, axis=1)[:, : R1.num_experts_per_tok]
    assert len(np.unique(chosen)) <= R1.num_experts_per_tok + 2
    figure = next(f for f in predict_whole(measured(ENGINE, (4, 8)), R1, ENGINE) if f.run.concurrency == 64)
    assert figure.value > 1.5 * figure.dummy  # with text, far more experts are streamed


def test_a_slice_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="a slice of 80 layers"):
        case_of(question(80, 1, 128, 16))
    with pytest.raises(InputError, match="without num_hidden_layers"):
        case_of(replace(question(8, 1, 128, 16), num_hidden_layers=None, first_k_dense_replace=1))
