"""Step times of servers that do one phase only, with what published fleets say of them beyond a server's equations.

The numbers were read off published fleets, all of them in view: what `python tools/fleet_errors.py` prints is how well
these forms describe those fleets, not how far off others will be. Single servers have none of them.
"""

from __future__ import annotations

import math
from dataclasses import replace

from packaging.version import Version

from models.config import ServerConfig
from models.machine import Machine
from models.serving.estimate import Context
from models.serving.scheduler import Limits
from models.serving.step_times import StepTimes
from models.version import at_least

# Seconds a prefill server spends on a request beside its pass: bootstrap, sending the KV cache, the host's work on it.
# H200, 0.5.8: 1k prompts complete at 70 to 84 % of the rate of full passes, 8k prompts at 99 to 104 %.
REQUEST_S = 0.01
# How many times as fast as the profile's a prefill server's full passes are on Blackwell. The profiles' efficiency is
# that of single servers, whose passes are small and wait for the host; DeepEP runs DeepGEMM on balanced experts of full
# width.
BLACKWELL_SPEED = 2.1
# Share of the GEMM rate that DeepEP's prefill reaches on Blackwell, in the profiles' measure (eta_pf).
DEEPEP_ETA = 1.5
# Waiting of DeepEP's ranks per MoE layer where NVLink joins the whole rack, from each release on (GB200 and GB300, EP8
# to EP48): the profiles' figure grows with the ranks, as over several nodes it does.
RACK_SYNC_US = (("0.5.8", 20.0), ("0.5.5", 90.0), ("0.4.3", 220.0))
# Two nodes of H100 behind InfiniBand NDR, one request decoding: NCCL's latency of a small all-reduce, and what a gather
# and a scatter of attention DP over all ranks cost instead.
INTERNODE_US, INTERNODE_DP_US = 28.0, 200.0
# A decode server of one attention group over two nodes takes in every KV cache once per rank, through the adapters that
# its all-reduces need: seconds its batch waits per request and per prompt token (H100, 1k and 8k prompts).
ARRIVAL_S, ARRIVAL_TOKEN_S = 0.12, 5.2e-5


class PrefillTimes(StepTimes):
    """Step times of a prefill server: full passes at its role's speed, and host work per request."""

    def __init__(self, times: StepTimes, *, speed: float) -> None:
        """`speed` multiplies the rate of a pass. Ranks share the host work on its requests, but meet for the pass."""
        self.__dict__.update(times.__dict__)
        self._request_s = REQUEST_S / math.sqrt(times.ranks)
        self._work_s = [[seconds / speed for seconds in row] for row in times._work_s]
        self._pair_s = times._pair_s / speed

    def prefill_s(self, prompts: int, new_tokens: float, pairs: float) -> float:
        return super().prefill_s(prompts, new_tokens, pairs) + self._request_s * prompts


class DecodeTimes(StepTimes):
    """Step times of a decode server: what is admitted was prefilled elsewhere."""

    def __init__(self, times: StepTimes, *, speed: float = 1.0, shares_network: bool = False) -> None:
        """`speed` multiplies the rate of steps.

        `shares_network`: KV caches arrive through the adapters that the server's own all-reduces need.
        """
        self.__dict__.update(times.__dict__)
        self.base_s = [seconds / speed for seconds in times.base_s]
        self.slope_s = [seconds / speed for seconds in times.slope_s]
        self._shares_network = shares_network

    def prefill_s(self, prompts: int, new_tokens: float, pairs: float) -> float:
        return ARRIVAL_S * prompts + ARRIVAL_TOKEN_S * new_tokens if self._shares_network else 0.0


def prefill_speed(context: Context, config: ServerConfig) -> float:
    """Return how many times as fast as the equations a prefill server of this layout runs its passes."""
    parameters = context.engine.parameters
    if not context.machine.is_blackwell:
        return parameters.prefill_role
    if config.moe_a2a_backend == "deepep":
        return parameters.prefill_role * DEEPEP_ETA / parameters.eta_pf
    return parameters.prefill_role * BLACKWELL_SPEED


def per_rank_prefill(limits: Limits, config: ServerConfig) -> Limits:
    """Return the limits of a prefill server: each attention-DP rank takes --max-prefill-tokens of its own queue."""
    return replace(limits, max_prefill=limits.max_prefill * config.attn_dp_size)


def decode_context(context: Context, config: ServerConfig) -> Context:
    """Return what a decode server's step times depend on, where fleets showed a server's own numbers to be wrong."""
    machine, parameters = context.machine, context.engine.parameters
    if config.moe_a2a_backend == "deepep" and machine.network_bytes_s >= machine.nvlink_bytes_s:
        doublings = max(1.0, math.log2(config.ep_size)) / 3.0  # the equation's, of ranks on several nodes
        parameters = replace(parameters, ep_layer_us=_rack_sync_us(context.version) / doublings)
    elif config.nnodes > 1 and machine.is_hopper:
        across_us = INTERNODE_DP_US if config.attn_dp_size > 1 else INTERNODE_US
        parameters = replace(parameters, internode_us=across_us)
    engine = replace(context.engine, parameters=parameters)
    return replace(context, engine=engine, independence=1.0 if machine.is_hopper else context.independence)


def _rack_sync_us(version: Version) -> float:
    return next(micros for since, micros in RACK_SYNC_US if at_least(version, since))


def shares_network(config: ServerConfig, machine: Machine) -> bool:
    """Say whether KV caches arrive through the adapters that a decode server's all-reduces need."""
    apart = machine.network_bytes_s < machine.nvlink_bytes_s
    return config.nnodes > 1 and config.attn_dp_size == 1 and apart
