"""`sgtune tune --traffic`: which stretch of a trace a run is measured under; `verify` finds the same one again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hwprobe.errors import InputError

if TYPE_CHECKING:
    from models.traffic.traced_workload import TracedLoad
    from tuner.launch_files.verification import Claim

MOST_RATE_SCALE = 1000.0
LEAST_WINDOW_S, MOST_WINDOW_S = 5.0, 6 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowAsked:
    """What was typed: the trace, how it is scaled, and the seconds that one launch is measured for."""

    traffic: Path
    rate_scale: float
    map: list[str] | None
    window_s: float


def refuse_without_traffic(typed: Mapping[str, object]) -> None:
    """Raise InputError for options that speak of a trace where none is named."""
    flags = [flag for flag, value in typed.items() if value]
    if flags:
        raise InputError(f"{', '.join(flags)}: speaks of --traffic: name the file of requests")


def refuse_beside_traffic(loads: Mapping[str, object]) -> None:
    """Raise InputError for options that a trace answers."""
    flags = [flag for flag, value in loads.items() if value is not None]
    if flags:
        raise InputError(f"{', '.join(flags)}: --traffic says how long requests are and when they come; leave it out")


def traced_load(typed: WindowAsked) -> TracedLoad:
    """Choose the window that stands for the trace. Raises InputError for a file or a figure of no meaning."""
    from models.traffic.traced_workload import TracedLoad, mark_of
    from models.traffic.window import representative_window
    from tuner.trace_files.read import read_trace

    if not (0.001 <= typed.rate_scale <= MOST_RATE_SCALE):
        raise InputError(f"--rate-scale is {typed.rate_scale:g}; it must be from 0.001 to 1,000")
    if not LEAST_WINDOW_S <= typed.window_s <= MOST_WINDOW_S:
        raise InputError(f"--window is {typed.window_s:g}s; it must be from 5s to 6h")
    trace = read_trace(typed.traffic, typed.map or ()).scaled(typed.rate_scale)
    window = representative_window(trace, typed.window_s)
    return TracedLoad(window=window, mark=mark_of(window, typed.traffic.name, typed.rate_scale))


def window_of_claim(claim: Claim, traffic: Path | None, mapping: list[str] | None) -> TracedLoad | None:
    """Return the window that a launch file was measured under, None for one that was not.

    Raises InputError where --traffic is missing, in vain, or another trace.
    """
    mark = claim.record.traffic
    if mark is None:
        if traffic is not None or mapping:
            raise InputError(f"'{claim.file}' was not measured under a trace: leave --traffic and --map out")
        return None
    if traffic is None:
        raise InputError(f"'{claim.file}' was measured under {mark}: name that file with --traffic")
    window_s = max(mark.length_s, LEAST_WINDOW_S)
    load = traced_load(WindowAsked(traffic=traffic, rate_scale=mark.rate_scale, map=mapping, window_s=window_s))
    if load.mark.digest != mark.digest:
        raise InputError(
            f"--traffic {traffic} is not the trace that '{claim.file}' was measured under ({mark}): its requests are "
            "others, or --map is"
        )
    return load
