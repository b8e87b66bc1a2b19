"""Looking at GPUs while they work: clock, power, temperature, and what holds the clocks down."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hwprobe.inventory.nvml import Refusals, throttles


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One GPU at one moment; None where NVML refused. Clock in MHz, power in W, temperature in degrees Celsius."""

    throttled: tuple[str, ...] = ()
    sm_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None


# Looks at GPUs by uuid; one that NVML does not know is left out.
LookAt = Callable[[Sequence[str]], dict[str, Look]]


@contextlib.contextmanager
def open_eyes(nvml: Any | None = None) -> Iterator[LookAt]:
    """Yield what looks at GPUs, NVML started once for all looks. Without NVML the looks are empty; never raises.

    `nvml` is the pynvml module or a stand-in with its functions.
    """
    try:
        module = nvml or importlib.import_module("pynvml")
    except ImportError:
        yield lambda uuids: {}
        return
    try:
        module.nvmlInit()
    except module.NVMLError:
        yield lambda uuids: {}
        return
    handles: dict[str, Any] = {}

    def look(uuids: Sequence[str]) -> dict[str, Look]:
        for uuid in uuids:
            if uuid not in handles:
                handles[uuid] = Refusals(module).ask("handle", partial(module.nvmlDeviceGetHandleByUUID, uuid))
        return {uuid: _look(module, handles[uuid]) for uuid in uuids if handles[uuid] is not None}

    try:
        yield look
    finally:
        with contextlib.suppress(module.NVMLError):
            module.nvmlShutdown()


def read_throttles(uuids: Sequence[str], nvml: Any | None = None) -> dict[str, tuple[str, ...]]:
    """Return what holds the clocks of these GPUs down right now; a GPU NVML does not know is left out."""
    with open_eyes(nvml) as look:
        return {uuid: state.throttled for uuid, state in look(uuids).items()}


def _look(nvml: Any, handle: Any) -> Look:
    ask = Refusals(nvml).ask
    reasons = ask("reasons", lambda: int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)))
    clock = ask("clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
    power = ask("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    temperature = ask("temperature", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return Look(
        throttled=throttles(nvml, reasons),
        sm_clock_mhz=None if clock is None else float(clock),
        power_w=None if power is None else power / 1e3,
        temperature_c=None if temperature is None else float(temperature),
    )
