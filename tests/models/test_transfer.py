"""A measured machine in predictions: what is healthy changes nothing, what is slower slows them, and it is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.expected import EXPECTED
from hwprobe.profile import Basis, GpuProfile, HardwareProfile, Quantity
from models.engine.profile import shipped_profiles
from models.engine.transfer import profile_on, sheet_equivalent, transfer
from models.engine.versions import profile_for
from models.machine import machine_of

PARAMETERS = shipped_profiles()[-1].parameters


def measured(value: float, sheet: float | None = None) -> Quantity:
    return Quantity(value=value, basis=Basis.MEASURED, sheet=sheet)


def probed(fractions: dict[str, float], slow_gpu: tuple[int, float] | None = None) -> HardwareProfile:
    """Return h200x8 with quantities measured at these fractions of the sheet, one GPU slower by a factor."""
    machine = hardware_from_catalogue("h200x8")

    def gpu(index: int, sheet: GpuProfile) -> GpuProfile:
        factor = slow_gpu[1] if slow_gpu and slow_gpu[0] == index else 1.0
        changes = {
            name: measured(getattr(sheet, name).value * fraction * factor, getattr(sheet, name).value)
            for name, fraction in fractions.items()
        }
        return replace(sheet, **changes)

    return replace(machine, gpus=tuple(gpu(index, sheet) for index, sheet in enumerate(machine.gpus)))


HEALTHY = {name: EXPECTED[name].fraction for name in ("hbm_gb_s", "bf16_tflops", "fp8_tflops", "nvlink_gb_s")}


def test_a_healthy_machine_predicts_what_its_data_sheet_predicts_but_as_measured() -> None:
    sheet, machine = machine_of(hardware_from_catalogue("h200x8")), machine_of(probed(HEALTHY))
    assert machine.hbm_bytes_s == pytest.approx(sheet.hbm_bytes_s)
    assert machine.fp8_flops == pytest.approx(sheet.fp8_flops)
    assert {machine.basis[name] for name in ("hbm", "bf16", "fp8", "nvlink")} == {Basis.MEASURED}
    assert machine.basis["network"] is Basis.ASSUMED


def test_one_slow_gpu_slows_the_machine() -> None:
    sheet, machine = machine_of(hardware_from_catalogue("h200x8")), machine_of(probed(HEALTHY, slow_gpu=(3, 0.86)))
    assert 0.86 <= machine.hbm_bytes_s / sheet.hbm_bytes_s <= 0.86 / 0.98 + 1e-9


def test_a_gpu_nobody_measured_counts_with_its_sheet() -> None:
    profile = probed({"hbm_gb_s": 0.80})
    half = replace(profile, gpus=(*profile.gpus[:4], *hardware_from_catalogue("h200x4").gpus))
    assert machine_of(half).hbm_bytes_s == machine_of(profile).hbm_bytes_s
    assert machine_of(half).basis["hbm"] is Basis.MEASURED


def test_gpus_without_nvlink_use_the_slowest_measured_pair() -> None:
    pcie = hardware_from_catalogue("l40sx2")
    assert machine_of(pcie).nvlink_bytes_s == 63e9
    paired = replace(pcie, p2p_gb_s=((None, 26.0), (22.0, None)))
    assert machine_of(paired).nvlink_bytes_s == 22e9
    assert machine_of(paired).basis["nvlink"] is Basis.MEASURED


def test_what_was_not_measured_stays_as_it_is() -> None:
    sheet = Quantity(value=4800, basis=Basis.CATALOGUE)
    assert sheet_equivalent("hbm_gb_s", sheet) == 4800
    assert sheet_equivalent("memory_mib", measured(143771)) == 143771


def test_a_card_without_a_sheet_gets_the_rate_its_measurement_implies() -> None:
    assert sheet_equivalent("hbm_gb_s", measured(910.0)) == pytest.approx(1000.0)


@given(st.floats(0.2, 1.2), st.floats(0.0, 0.05), st.sampled_from(sorted(HEALTHY)))
def test_a_faster_measurement_never_means_a_slower_machine(fraction: float, more: float, name: str) -> None:
    slow, fast = (sheet_equivalent(name, measured(1000.0 * f, 1000.0)) for f in (fraction, fraction + more))
    assert slow <= fast * (1 + 1e-12)
    error = EXPECTED[name].error
    assert fast / 1000.0 == pytest.approx((fraction + more) / EXPECTED[name].fraction, rel=error / (1 - error) + 1e-9)


def card(**values: float) -> GpuProfile:
    gpu = hardware_from_catalogue("h200x1").gpus[0]
    return replace(gpu, measured={name: measured(value) for name, value in values.items()})


def test_parameters_stay_without_measurements_and_on_a_machine_like_the_reference() -> None:
    assert transfer(PARAMETERS, card()).parameters == PARAMETERS
    alike = transfer(PARAMETERS, card(hbm_gb_s=4370.0, stream_gb_s=4370.0 * 0.95, graph_node_us=1.4))
    assert alike.parameters == PARAMETERS
    assert alike.notes == ()
    assert alike.eta_w_error > 0


def test_poor_streaming_lowers_eta_w_and_slow_nodes_raise_tau() -> None:
    moved = transfer(PARAMETERS, card(hbm_gb_s=4000.0, stream_gb_s=2400.0, graph_node_us=3.5))
    assert moved.parameters.eta_w == pytest.approx(PARAMETERS.eta_w * 0.6 / 0.95 / 0.94)
    assert moved.parameters.tau_us == 3.5
    assert len(moved.notes) == 2
    assert moved.parameters.eta_pf == PARAMETERS.eta_pf


@given(st.floats(100, 8000), st.floats(100, 8000), st.floats(0.1, 50))
def test_transferred_parameters_stay_possible(read: float, stream: float, node_us: float) -> None:
    moved = transfer(PARAMETERS, card(hbm_gb_s=read, stream_gb_s=stream, graph_node_us=node_us)).parameters
    assert 0 < moved.eta_w <= 1
    assert moved.tau_us >= max(PARAMETERS.tau_us, node_us)


def test_a_plan_on_a_slow_streaming_machine_uses_a_moved_profile_and_says_so() -> None:
    version = Version("0.5.12")
    sheet = hardware_from_catalogue("h200x8")
    assert profile_on(sheet, version) is profile_for(version)
    slow = {"hbm_gb_s": measured(4370.0), "stream_gb_s": measured(3000.0), "graph_node_us": measured(1.5)}
    worst = replace(sheet.gpus[3], measured=slow)
    moved = profile_on(replace(sheet, gpus=(*sheet.gpus[:3], worst, *sheet.gpus[4:])), version)
    shipped = profile_for(version)
    assert moved.parameters.eta_w < 0.9 * shipped.parameters.eta_w
    assert moved.parameters.tau_us == shipped.parameters.tau_us
    assert np.trace(np.array(moved.covariance)) > np.trace(np.array(shipped.covariance))
    assert any("moved to this machine" in said for said in moved.warnings)
