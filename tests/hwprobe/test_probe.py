"""The inventory against scripted NVMLs: whole, refusing, broken in every way that is known, absent."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from fake_nvml import H20, H200, FakeNvml, fabric

from hwprobe.inventory.health import refusal
from hwprobe.inventory.looks import read_throttles
from hwprobe.inventory.nvml import read_inventory
from hwprobe.probe import probe_machine, visible_only
from hwprobe.profile import Basis


@pytest.fixture(autouse=True)
def _every_gpu_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_eight_h200_behind_nvswitch() -> None:
    nvml = FakeNvml([H200] * 8)
    profile = probe_machine(nvml)
    assert profile.gpu_count == 8
    gpu, state = profile.gpus[7], profile.gpus[7].state
    assert gpu.memory_mib.basis is Basis.NVML
    assert gpu.hbm_gb_s.basis is Basis.CATALOGUE
    assert (gpu.uuid, gpu.pcie) == ("GPU-7", "Gen5 x16")
    assert gpu.sm_count is not None
    assert gpu.sm_count.value == 132
    assert state is not None
    assert (state.nvlinks_active, state.nvlinks, state.nvlink_remote, state.fabric) == (18, 18, "switch", "completed")
    assert (state.ecc, state.mig, state.power_limit_w, state.pcie_generation) == (True, False, 700.0, 1)
    assert profile.software == {"driver": "580.1", "cuda": "13.0"}
    assert profile.topology is not None
    assert profile.topology[0][:2] == ("self", "SYS")
    assert profile.p2p is not None
    assert profile.p2p[7][0] == "NVLink"
    assert profile.warnings == ()
    assert nvml.shut_down


def test_eight_h20_are_told_by_memory_and_bus() -> None:
    profile = probe_machine(FakeNvml([H20] * 8))
    gpu = profile.gpus[0]
    assert (gpu.bf16_tflops.value, gpu.hbm_gb_s.value) == (148, 4000)
    assert gpu.sm_count is not None
    assert gpu.sm_count.value == 78
    assert profile.warnings == ()
    assert read_inventory(FakeNvml([H20])).gpus[0].hbm_gb_s == pytest.approx(4023, rel=0.001)


def test_a_bus_that_contradicts_the_name_is_pointed_out() -> None:
    slow = FakeNvml([H200], nvmlDeviceGetMaxClockInfo=1600)
    assert any("is it the card its name says" in warning for warning in probe_machine(slow).warnings)


ODDITIES: list[tuple[dict[str, Any], str, str | None]] = [
    ({"nvmlDeviceGetMigMode": [1, 1]}, "MIG is on", "MIG is on.*-mig 0"),
    ({"nvmlDeviceGetEccMode": [0, 0]}, "ECC is off", None),
    ({"nvmlDeviceGetTotalEccErrors": 3}, "3 uncorrected ECC errors", None),
    ({"nvmlDeviceGetRemappedRows": (0, 1, 1, 0)}, "wait to be remapped", None),
    ({"nvmlDeviceGetRemappedRows": (0, 1, 0, 1)}, "needs service", None),
    ({"nvmlDeviceGetCurrPcieLinkWidth": 8}, "PCIe x8 of x16: downtrained", None),
    ({"nvmlDeviceGetCurrentClocksEventReasons": 0x44}, r"power cap, temperature \(hardware\)", None),
    ({"nvmlDeviceGetEnforcedPowerLimit": 500_000}, "power capped at 500 W of 700 W", None),
    ({"nvmlDeviceGetNvLinkState": lambda handle, link: int(link < 17)}, "17 of 36 NVLinks up", None),
    ({"c_nvmlGpuFabricInfo_v2_t": fabric(2)}, "fabric in progress", None),
    ({"c_nvmlGpuFabricInfo_v2_t": fabric(3, 999)}, "completed: error 999", None),
    ({"nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=80)}, "80 % utilization", "80 % utilization"),
]


@pytest.mark.parametrize(("answers", "warning", "refused"), ODDITIES, ids=[row[1] for row in ODDITIES])
def test_what_is_wrong_is_said_once_and_measured_only_if_it_may(
    answers: dict[str, Any], warning: str, refused: str | None
) -> None:
    nvml = FakeNvml([H200] * 8, **answers)
    (said,) = probe_machine(nvml).warnings
    assert re.match(f"GPUs 0-7: .*{warning}", said)
    reason = refusal(read_inventory(nvml).gpus[0])
    assert reason is None if refused is None else re.search(refused, reason or "")


def test_a_busy_gpu_names_its_holder() -> None:
    process = SimpleNamespace(pid=os.getpid(), usedGpuMemory=90_000 * 2**20)
    holders = {"nvmlDeviceGetComputeRunningProcesses": lambda handle: [process] if handle == 1 else []}
    inventory = read_inventory(FakeNvml([H200] * 2, **holders))
    assert refusal(inventory.gpus[0]) is None
    reason = refusal(inventory.gpus[1]) or ""
    assert f"(pid {os.getpid()}) with 87.9 GiB" in reason
    assert "python" in reason or "pytest" in reason
    hidden = refusal(read_inventory(FakeNvml([H200], used_mib=90_000)).gpus[0]) or ""
    assert "87.9 GiB in use by a process the driver does not name here" in hidden


def test_sm_count_comes_from_cores() -> None:
    assert read_inventory(FakeNvml([H200])).gpus[0].sm_count == 132
    ampere = FakeNvml([H200], nvmlDeviceGetCudaComputeCapability=(8, 0), nvmlDeviceGetNumGpuCores=108 * 64)
    assert read_inventory(ampere).gpus[0].sm_count == 108


EVERY_CALL = [name for name in FakeNvml([H200])._answers if name.startswith("nvmlDevice") or "Fabric" in name]


@pytest.mark.parametrize("name", EVERY_CALL)
def test_any_single_call_may_be_refused(name: str) -> None:
    profile = probe_machine(FakeNvml([H200] * 2, refuse=(name,)))
    assert profile.host is not None
    needed = ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo")
    assert len(profile.gpus) == (0 if name in needed else 2 if name != "nvmlDeviceGetName" else 0)


def test_no_permission_for_anything_but_memory_and_name_is_survived_and_said() -> None:
    granted = {"nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetName"}
    profile = probe_machine(FakeNvml([H200] * 8, refuse=tuple(set(EVERY_CALL) - granted)))
    assert profile.gpu_count == 8
    assert profile.gpus[0].sm_count is not None
    assert profile.gpus[0].sm_count.basis is Basis.CATALOGUE
    for what in ("uuid", "ECC mode", "compute processes", "power limit"):
        assert any(w.startswith(f"GPUs 0-7: NVML does not say: {what}") for w in profile.warnings)


def test_a_lost_gpu_is_left_out_and_named() -> None:
    profile = probe_machine(FakeNvml([H200] * 8, lost=(3,)))
    assert [gpu.uuid for gpu in profile.gpus] == [f"GPU-{index}" for index in (0, 1, 2, 4, 5, 6, 7)]
    assert profile.topology is not None
    assert {len(profile.topology), *map(len, profile.topology)} == {7}
    assert any(warning.startswith("GPU 3: GPU is lost") for warning in profile.warnings)
    all_lost = probe_machine(FakeNvml([H200], lost=(0,)))
    assert all_lost.gpus == ()
    assert any("no usable GPU" in warning for warning in all_lost.warnings)


def test_an_unknown_card_is_named_not_guessed() -> None:
    profile = probe_machine(FakeNvml([("NVIDIA Mystery", 12345), H200, H200]))
    assert [gpu.name for gpu in profile.gpus] == ["NVIDIA H200"] * 2
    assert profile.topology == (("self", "SYS"), ("SYS", "self"))
    assert any("Mystery" in warning and "not in the catalogue" in warning for warning in profile.warnings)
    assert any("different cards" in warning for warning in profile.warnings)


def test_no_driver() -> None:
    profile = probe_machine(FakeNvml([], refuse=("nvmlInit",)))
    assert profile.gpus == ()
    assert profile.host is not None
    assert profile.host.memory_gib > 0.1
    assert any(warning.startswith("no GPU: no NVIDIA driver") for warning in profile.warnings)


@pytest.mark.parametrize(
    ("visible", "left"),
    [("1,2", [1, 2]), ("GPU-3", [3]), ("", []), ("GPU-9", []), ("0, GPU-1", [0, 1])],
)
def test_hidden_gpus_are_not_probed(visible: str, left: list[int]) -> None:
    inventory = visible_only(read_inventory(FakeNvml([H200] * 4)), {"CUDA_VISIBLE_DEVICES": visible})
    assert [gpu.index for gpu in inventory.gpus] == left
    assert (inventory.topology is None) == (len(left) < 2)
    assert (inventory.absent is None) == bool(left)


def test_throttles_are_read_by_uuid_and_silence_is_no_reason() -> None:
    assert read_throttles(["GPU-0"], FakeNvml([H200], nvmlDeviceGetCurrentClocksEventReasons=0x5)) == {
        "GPU-0": ("power cap",)
    }
    assert read_throttles(["GPU-0"], FakeNvml([H200], refuse=("nvmlDeviceGetHandleByUUID",))) == {}
    assert read_throttles(["GPU-0"], FakeNvml([H200], refuse=("nvmlInit",))) == {}


def test_the_real_module_has_every_function_the_inventory_calls() -> None:
    for name in FakeNvml([])._answers:
        assert hasattr(pynvml, name), name
    for name in vars(FakeNvml):
        if name.startswith(("NVML_", "nvml")):
            assert getattr(pynvml, name) is not None
    from hwprobe.inventory.nvml import THROTTLES

    assert all(hasattr(pynvml, name) for name in THROTTLES)
