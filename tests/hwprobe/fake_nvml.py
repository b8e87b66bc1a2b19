"""A scripted stand-in for the pynvml module: whole machines, refusing drivers, lost GPUs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class FakeNvmlError(Exception):
    pass


def _fabric(state: int, status: int = 0, health: int = 0) -> Any:
    return lambda: SimpleNamespace(state=state, status=status, healthMask=health)


def link_counters(**counts: int) -> Any:
    """Answer nvmlDeviceGetFieldValues: `f161=3` is 3 of field 161 on link 0; fields not named are not supported."""

    def read(handle: int, asked: list[tuple[int, int]]) -> list[Any]:
        def one(field: int, link: int) -> Any:
            known = f"f{field}" in counts
            value = SimpleNamespace(ullVal=counts.get(f"f{field}", 0) if link == 0 else 0)
            return SimpleNamespace(fieldId=field, scopeId=link, nvmlReturn=0 if known else 3, value=value)

        return [one(*each) for each in asked]

    return read


class FakeNvml:
    """`cards` are (name, MiB); `refuse` names functions that raise; `lost` are indices the driver cannot reach.

    Any other keyword replaces a function's answer: a value, or a callable of the function's arguments.
    """

    NVMLError = FakeNvmlError
    nvmlMemory_v2 = 2
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_AGGREGATE_ECC = 1
    NVML_NVLINK_MAX_LINKS = 36
    NVML_P2P_CAPS_INDEX_NVLINK = 2
    NVML_P2P_STATUS_OK = 0
    NVML_TEMPERATURE_GPU = 0
    NVML_GPU_FABRIC_STATE_COMPLETED = 3
    nvmlClocksEventReasonSwPowerCap = 0x4
    nvmlClocksEventReasonHwThermalSlowdown = 0x40

    def __init__(
        self,
        cards: list[tuple[str, int]],
        refuse: tuple[str, ...] = (),
        used_mib: int = 0,
        lost: tuple[int, ...] = (),
        **answers: Any,
    ) -> None:
        self._cards, self._refuse, self._lost = cards, refuse, lost
        self.shut_down = False
        is_h20 = [name == "NVIDIA H20" for name, _ in cards]
        self._answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": self._shutdown,
            "nvmlDeviceGetCount": len(cards),
            "nvmlDeviceGetHandleByIndex": self._handle,
            "nvmlDeviceGetHandleByUUID": lambda uuid: int(uuid.removeprefix("GPU-")),
            "nvmlDeviceGetMemoryInfo": lambda handle, version: SimpleNamespace(
                total=cards[handle][1] * 2**20, used=used_mib * 2**20, reserved=600 * 2**20
            ),
            "nvmlDeviceGetName": lambda handle: cards[handle][0],
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
            "nvmlDeviceGetNumGpuCores": lambda handle: (78 if is_h20[handle] else 132) * 128,
            "nvmlDeviceGetMemoryBusWidth": 6144,
            "nvmlDeviceGetMaxClockInfo": lambda handle, which: (
                (2619 if is_h20[handle] else 3201) if which == self.NVML_CLOCK_MEM else 1980
            ),
            "nvmlDeviceGetClockInfo": 345,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=0, memory=0),
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x1,
            "nvmlDeviceGetPowerUsage": 120_000,
            "nvmlDeviceGetTemperature": 41,
            "nvmlDeviceGetFieldValues": link_counters(f161=0, f162=0, f163=0),
            "nvmlDeviceGetEccMode": [1, 1],
            "nvmlDeviceGetTotalEccErrors": 0,
            "nvmlDeviceGetRemappedRows": (0, 0, 0, 0),
            "nvmlDeviceGetMigMode": [0, 0],
            "nvmlDeviceGetCurrPcieLinkGeneration": 1,
            "nvmlDeviceGetCurrPcieLinkWidth": 16,
            "nvmlDeviceGetMaxPcieLinkGeneration": 5,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetNvLinkState": self._link,
            "nvmlDeviceGetNvLinkRemoteDeviceType": 2,
            "c_nvmlGpuFabricInfo_v2_t": _fabric(3),
            "nvmlDeviceGetGpuFabricInfoV": None,
            "nvmlDeviceGetTopologyCommonAncestor": 50,
            "nvmlDeviceGetP2PStatus": 0,
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [],
            "nvmlSystemGetDriverVersion": "580.1",
            "nvmlSystemGetCudaDriverVersion_v2": 13000,
        }
        assert set(answers) <= set(self._answers), "unknown function"
        self._answers |= answers

    def __getattr__(self, name: str) -> Any:
        if name in self._refuse:
            return lambda *a, **k: self._fail(f"Not Supported: {name}")
        if name not in self._answers:
            raise AttributeError(name)
        answer = self._answers[name]
        return answer if callable(answer) else lambda *a, **k: answer

    def _fail(self, what: str) -> Any:
        raise FakeNvmlError(what)

    def _handle(self, index: int) -> int:
        if index in self._lost:
            self._fail("GPU is lost")
        return index

    def _link(self, handle: int, link: int) -> int:
        if link >= 18:
            self._fail("Invalid Argument")
        return 1

    def _shutdown(self) -> None:
        self.shut_down = True


H200 = ("NVIDIA H200", 143771)
H20 = ("NVIDIA H20", 97871)
fabric = _fabric
