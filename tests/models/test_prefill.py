"""Prefill under expert parallelism: random prompts load its ranks unevenly unless something balances them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from models.config import ServerConfig
from models.costs.prefill import prefill_s
from models.layout import table_of
from models.serving.estimate import Context

BASE = ServerConfig(
    tp_size=8, mem_fraction_static=0.85, max_running_requests=128, chunked_prefill_size=8192,
    cuda_graph_max_bs_decode=128, context_length=163_840, scheduler_recv_interval=1,
)  # fmt: skip


def seconds(context: Context, config: ServerConfig, independence: float) -> float:
    system = replace(context, independence=independence).system(table_of([config]))
    return float(prefill_s(system, np.array([1.0]), np.array([8000.0]), np.array([0.0]))[0])


def test_random_prompts_wait_for_the_busiest_ep_rank(context: Callable[..., Context]) -> None:
    wide, uneven = BASE, replace(BASE, ep_size=8)
    assert seconds(context(), uneven, 0.5) > 1.3 * seconds(context(), wide, 0.5)
    assert seconds(context(), replace(BASE, ep_size=4), 0.5) < seconds(context(), uneven, 0.5)


@pytest.mark.parametrize(
    "flags", [{"ep_dispatch_algorithm": "fake"}, {"enable_eplb": True}], ids=["fake dispatch", "EPLB"]
)
def test_balanced_ranks_and_text_do_not(context: Callable[..., Context], flags: dict[str, object]) -> None:
    uneven = replace(BASE, ep_size=8)
    assert seconds(context(), uneven.with_flags(**flags), 0.5) == pytest.approx(seconds(context(), BASE, 0.5))
    assert seconds(context(), uneven, 1.0) == pytest.approx(seconds(context(), BASE, 1.0))
