"""The inventory against scripted NVMLs: whole, refusing, absent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hwprobe.nvml import read_inventory
from hwprobe.probe import probe_machine
from hwprobe.profile import Basis


class FakeNvmlError(Exception):
    pass


class FakeNvml:
    """Stands in for the pynvml module; `refuse` names functions that raise."""

    NVMLError = FakeNvmlError
    nvmlMemory_v2 = 2

    def __init__(self, cards: list[tuple[str, int]], refuse: tuple[str, ...] = (), used_mib: int = 0) -> None:
        self._cards, self._refuse, self._used = cards, refuse, used_mib
        self.shut_down = False

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: len(self._cards),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMemoryInfo": lambda handle, version: SimpleNamespace(
                total=self._cards[handle][1] * 2**20, used=self._used * 2**20
            ),
            "nvmlDeviceGetName": lambda handle: self._cards[handle][0],
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
            "nvmlDeviceGetCudaComputeCapability": lambda handle: (9, 0),
            "nvmlDeviceGetNumGpuCores": lambda handle: 132 * 128,
            "nvmlDeviceGetMaxPcieLinkGeneration": lambda handle: 5,
            "nvmlDeviceGetMaxPcieLinkWidth": lambda handle: 16,
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 13000,
            "nvmlShutdown": self._shutdown,
        }
        if name in self._refuse:
            return lambda *a, **k: self._fail(name)
        return answers[name]

    def _fail(self, what: str) -> Any:
        raise FakeNvmlError(f"Not Supported: {what}")

    def _shutdown(self) -> None:
        self.shut_down = True


def test_eight_h200() -> None:
    nvml = FakeNvml([("NVIDIA H200", 143771)] * 8)
    profile = probe_machine(nvml)
    assert profile.gpu_count == 8
    assert profile.gpus[0].memory_mib.basis is Basis.NVML
    assert profile.gpus[0].hbm_gb_s.basis is Basis.CATALOGUE
    assert profile.gpus[7].uuid == "GPU-7"
    assert profile.software == {"driver": "580.1", "cuda": "13.0"}
    assert profile.warnings == ()
    assert nvml.shut_down


def test_sm_count_comes_from_cores() -> None:
    assert read_inventory(FakeNvml([("NVIDIA H200", 143771)])).gpus[0].sm_count == 132


def test_refused_calls_are_said_and_survived() -> None:
    nvml = FakeNvml(
        [("NVIDIA H200", 143771)],
        refuse=("nvmlDeviceGetNumGpuCores", "nvmlDeviceGetUUID", "nvmlSystemGetDriverVersion"),
    )
    profile = probe_machine(nvml)
    assert profile.gpus[0].uuid is None
    assert profile.gpus[0].sm_count is not None
    assert profile.gpus[0].sm_count.basis is Basis.CATALOGUE
    assert any("uuid" in warning for warning in profile.warnings)


def test_a_lost_gpu_is_left_out() -> None:
    profile = probe_machine(FakeNvml([("NVIDIA H200", 143771)], refuse=("nvmlDeviceGetMemoryInfo",)))
    assert profile.gpus == ()
    assert any("no usable GPU" in warning for warning in profile.warnings)


def test_an_unknown_card_is_named_not_guessed() -> None:
    profile = probe_machine(FakeNvml([("NVIDIA Mystery", 12345), ("NVIDIA H200", 143771)]))
    assert [gpu.name for gpu in profile.gpus] == ["NVIDIA H200"]
    assert any("Mystery" in warning for warning in profile.warnings)


def test_memory_in_use_is_warned_of() -> None:
    profile = probe_machine(FakeNvml([("NVIDIA H200", 143771)], used_mib=90_000))
    assert any("87.9 GiB in use" in warning for warning in profile.warnings)


def test_no_driver() -> None:
    profile = probe_machine(FakeNvml([], refuse=("nvmlInit",)))
    assert profile.gpus == ()
    assert profile.host is not None
    assert profile.host.memory_gib > 0.1
    assert any(warning.startswith("no GPU") for warning in profile.warnings)
