"""A server's own figures of memory and start, next to the ledger's prediction."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from models.costs.memory import MemoryLedger
from tuner.server.ask import number

# SGLang prints GiB and calls them GB. 0.4.3 prints no "mem usage": then the difference of what was available.
WEIGHTS = re.compile(r"Load weight end\..*?mem usage=([\d.]+) GB")
BEFORE = re.compile(r"Load weight begin\. avail mem=([\d.]+) GB")
AFTER = re.compile(r"Load weight end\..*?avail mem=([\d.]+) GB")
POOL_END = re.compile(r"Memory pool end\. avail mem=([\d.]+) GB")
LAST_FREE = re.compile(r"available_gpu_mem=([\d.]+) GB")
# What a rank without a web server says of its pool.
TOKENS = re.compile(r"KV Cache is allocated\..*?#tokens: (\d+)")
GRAPHS = re.compile(r"Capture .*?(?:CUDA|cuda) graph end.*?mem usage=([\d.]+) GB")


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFigure:
    """One quantity, predicted by the ledger and read from the server; None where it was not printed."""

    predicted: float
    measured: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFigures:
    """Memory of one GPU in GiB, KV tokens of one rank, and seconds of the start by SGLang's own names."""

    weights_gib: BootFigure
    graphs_gib: BootFigure
    free_gib: BootFigure
    kv_tokens_per_rank: BootFigure
    timings_s: dict[str, float]


def boot_figures(log: str, info: dict[str, Any], ledger: MemoryLedger) -> BootFigures:
    """Read a ready server's log and `/server_info`. What was not printed stays None."""
    weights = _last(WEIGHTS, log)
    before, after = _first(BEFORE, log), _first(AFTER, log)
    if weights is None and before is not None and after is not None:
        weights = before - after
    graphs = [float(text) for text in GRAPHS.findall(log)]
    free, tokens = _last(LAST_FREE, log), number(info.get("max_total_num_tokens")) or _first(TOKENS, log)
    return BootFigures(
        weights_gib=BootFigure(predicted=ledger.weights_gib, measured=weights),
        graphs_gib=BootFigure(predicted=ledger.per_gpu_gib.get("CUDA graphs", 0.0), measured=sum(graphs) or None),
        free_gib=BootFigure(predicted=ledger.free_gib, measured=free if free is not None else _last(POOL_END, log)),
        kv_tokens_per_rank=BootFigure(predicted=ledger.kv_tokens_per_rank, measured=tokens),
        timings_s=_timings(info.get("startup_time")),
    )


def _timings(startup: Any) -> dict[str, float]:
    """Flatten `startup_time`; phases of graph capture become `cuda_graph.decode` and so on."""
    flat: dict[str, float] = {}
    for name, value in startup.items() if isinstance(startup, dict) else ():
        parts = value.items() if isinstance(value, dict) else (("", value),)
        for part, seconds in parts:
            if (duration_s := number(seconds)) is not None:
                flat[f"{name}.{part}" if part else str(name)] = duration_s
    return flat


def _first(pattern: re.Pattern[str], log: str) -> float | None:
    match = pattern.search(log)
    return float(match.group(1)) if match else None


def _last(pattern: re.Pattern[str], log: str) -> float | None:
    matches = pattern.findall(log)
    return float(matches[-1]) if matches else None
