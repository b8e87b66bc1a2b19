"""Configurations with every default filled in, for tests that vary one or two fields."""

from __future__ import annotations

from dataclasses import replace

from models.config import ServerConfig

FILLED = ServerConfig(
    tp_size=8,
    mem_fraction_static=0.88,
    max_running_requests=2048,
    chunked_prefill_size=8192,
    cuda_graph_max_bs_decode=160,
    context_length=163840,
    scheduler_recv_interval=1,
)


def filled(**changes: object) -> ServerConfig:
    return replace(FILLED, **changes)  # type: ignore[arg-type]  # field names are checked by replace
