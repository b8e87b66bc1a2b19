"""Caveats of a prediction, to be shown with its figures: thin evidence, missing kernels, caps that bind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.config import ServerConfig
from models.costs.decode import decode_step
from models.costs.system import System
from models.engine.tuned import TUNED_ROWS, first_tuned

# SGLang's own cap of running requests under speculation, where none is given.
SPECULATIVE_CAP = 48
# Missing kernels are worth a sentence from this cost on; it is looked for at these batches.
WORTH_SAYING = 0.03
BATCHES = np.geomspace(1.0, 512.0, 10)


def structural_warnings(config: ServerConfig) -> tuple[str, ...]:
    """Say which parts of a prediction rest on few measurements."""
    caveats = []
    if config.ep_size > 1:
        caveats.append("EP: the cost of expert dispatch inside a step is uncertain by 2x")
    if config.pp_size > 1:
        caveats.append("PP: bubbles and exposed host time are assumed, nothing is published for this model")
    if config.nnodes > 1:
        caveats.append("several nodes: few runs are published; the line on evidence says how far predictions were off")
    if config.speculative:
        caveats.append("MTP: the gain rests on the acceptance given; random tokens are not accepted like text")
    return tuple(caveats)


def cap_warning(config: ServerConfig, clients: int) -> tuple[str, ...]:
    """Warn where SGLang's cap of running requests under speculation makes clients wait."""
    if config.speculative is None or config.max_running_requests != SPECULATIVE_CAP or clients <= SPECULATIVE_CAP:
        return ()
    return (
        f"MTP: at most {SPECULATIVE_CAP} requests run at once, SGLang's own cap under speculation; {clients:,} clients "
        f"wait for it: --max-running-requests {clients} lifts it",
    )


def kernel_warning(system: System, config: ServerConfig, *, release: str, context: float) -> tuple[str, ...]:
    """Say what missing tuned MoE kernels cost, from how many running requests on, and what to do about it."""
    if config.ep_size > 1 or float(np.ravel(system.moe_tile_rows)[0]) <= TUNED_ROWS:
        return ()
    batch = BATCHES[max(1.0, float(system.table.most_running[0])) >= BATCHES]
    length = np.full_like(batch, context)
    tuned = decode_step(replace(system, moe_tile_rows=TUNED_ROWS), batch, length).total
    slower = decode_step(system, batch, length).total / tuned - 1.0
    if slower.max() < WORTH_SAYING:
        return ()
    start = batch[int(np.argmax(slower >= WORTH_SAYING))]
    later = first_tuned(system.machine.device, config.tp_size)
    other = f", or take release {later} or later" if later else ""
    return (
        f"SGLang {release} ships no tuned MoE kernel for {system.machine.device} at TP{config.tp_size}: a step is "
        f"up to {100.0 * slower.max():.0f} % slower, from {start:.0f} running requests on; tune it with SGLang's "
        f"tuning_fused_moe_triton.py{other}",
    )
