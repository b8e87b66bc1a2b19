"""Step times of servers that do one phase only, with what published fleets say of them beyond a server's equations.

The numbers were read off published fleets, all of them in view: what `python tools/fleet_errors.py` prints is how well
these forms describe those fleets, not how far off others will be. Single servers have none of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from packaging.version import Version

from models.config import ServerConfig
from models.engine.profile import CDNA4
from models.machine import Machine
from models.serving.estimate import Context
from models.serving.scheduler import Limits
from models.serving.step_times import StepTimes
from models.version import at_least

# Seconds a prefill server spends on a request beside its pass: bootstrap, sending the KV cache, the host's work on it.
# H200, 0.5.8: 1k prompts complete at 70 to 84 % of the rate of full passes, 8k prompts at 99 to 104 %.
REQUEST_S = 0.01
# Full prefill passes on MI355X over the profiles' rate, and how many times slower they are with EP inside one attention
# group (0.5.6, 8k prompts: 2.1 requests a second where TP alone gives 4).
CDNA4_SPEED, CDNA4_EP_SLOWER = 1.25, 2.5
# GEMM rate of a prefill server's full passes on Blackwell in the profiles' measure (eta_pf), since the release, and
# behind DeepEP, which runs DeepGEMM on balanced experts of full width. The profiles' own is that of single servers,
# whose passes are small and wait for the host.
BLACKWELL_SINCE, BLACKWELL_ETA = "0.5.8", 0.8
DEEPEP_ETA = (("0.5.5", 2.2), ("0.4.3", 1.0))
# Rate of prefill attention behind cutlass_mla on Blackwell over the profiles' (trtllm_mla): its prefill is FlashInfer's
# kernel for older GPUs. GB200, 0.5.4: 8k prompts at 4 s a full pass of two a rank, 1k prompts at 2 s of seventeen.
CUTLASS_MLA_PAIRS = 0.25
# Rows of the busiest of eight EP ranks over the mean in prefill of random prompts on Hopper, where no single server was
# measured: H200 with EP8 and 1k prompts completes 28 to 30 requests a second.
HOPPER_EP_PREFILL = 1.3
# Waiting of DeepEP's ranks per MoE layer where NVLink joins the whole rack, from each release on (GB200 and GB300, EP8
# to EP48): the profiles' figure grows with the ranks, as over several nodes it does.
RACK_SYNC_US = (("0.5.8", 20.0), ("0.5.5", 90.0), ("0.4.3", 220.0))
# Two nodes of H100 behind InfiniBand NDR, one request decoding: NCCL's latency of a small all-reduce, and what a gather
# and a scatter of attention DP over all ranks cost instead.
INTERNODE_US, INTERNODE_DP_US = 28.0, 200.0
# A decode server of one attention group over two nodes takes in every KV cache once per rank, through the adapters that
# its all-reduces need: seconds its batch waits per request and per prompt token (H100, 1k and 8k prompts).
ARRIVAL_S, ARRIVAL_TOKEN_S = 0.12, 5.2e-5

# Decode steps run as one: arrivals of other servers are seen within so many steps of a decode server.
STRIDE = 8.0
# A prefill server's cap is on what it prefills and transfers; prompts come out of it one pass at a time.
NO_CAP = 1_000_000
# Tokens of a stream interval that a first token waits for. Under attention DP it is a share of the interval (GB200 and
# GB300, EP8 to EP48, 1k prompts). A TP server holds it for ten at most, half of that at 16 running: one with next to
# nothing to do sends it at once (B200, H200 and GB200 fleets of 1 to 128 clients).
DP_HELD, TP_HELD, HALF_HELD = 0.6, 10.0, 16.0
# Steps that the ranks of a decode server take to allocate, take in and admit a request (MI355X with steps of 40 and of
# 150 ms, H100 alone on two nodes).
DP_ADMITS = 3.0


class PrefillTimes(StepTimes):
    """Step times of a prefill server: full passes at its role's speed, and host work per request."""

    def __init__(self, times: StepTimes, *, speed: float = 1.0, attention_speed: float = 1.0) -> None:
        """The speeds multiply the rates of a pass's products and of its attention.

        Every rank does the host work on its own requests.
        """
        self.__dict__.update(times.__dict__)
        self._work_s = [[seconds / speed for seconds in row] for row in times._work_s]
        self._pair_s = times._pair_s / attention_speed

    def prefill_s(self, prompts: int, new_tokens: float, pairs: float) -> float:
        return super().prefill_s(prompts, new_tokens, pairs) + REQUEST_S * math.ceil(prompts / self._ranks)

    def pass_s(self, tokens: int, busiest: int, pairs: float, prompts: int) -> float:
        """Seconds of a pass of `tokens` on all ranks; `busiest`, `pairs` and `prompts` are the most of any rank."""
        even = 1.0 / self._ranks
        uneven = (busiest / tokens - even) / (1.0 - even) if self._ranks > 1 else 0.0
        work_s = self._row_s(self._ranks - 1, tokens)
        if uneven > 0.0:
            work_s += uneven * (self._row_s(0, tokens) - work_s)
        attended = pairs if self._attention is None else float(self._attention.attended(prompts, busiest, pairs))
        gpu_s = work_s + self._pair_s * attended + self._scan_s * pairs
        return float((gpu_s**4 + self._floor4) ** 0.25) + REQUEST_S * prompts


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
    if context.machine.family == CDNA4:
        slower = CDNA4_EP_SLOWER if config.ep_size > 1 and config.attn_dp_size == 1 else 1.0
        return parameters.prefill_role * CDNA4_SPEED / slower
    if not context.machine.is_blackwell:
        return parameters.prefill_role
    if config.moe_a2a_backend == "deepep":
        return parameters.prefill_role * _since(DEEPEP_ETA, context.version) / parameters.eta_pf
    if at_least(context.version, BLACKWELL_SINCE):
        return parameters.prefill_role * max(1.0, BLACKWELL_ETA / parameters.eta_pf)
    return parameters.prefill_role


def prefill_context(context: Context) -> Context:
    """Return what a prefill server's pass times depend on, where fleets showed a server's own numbers to be wrong."""
    if not context.machine.is_hopper:
        return context
    parameters = replace(context.engine.parameters, ep_prefill=HOPPER_EP_PREFILL)
    return replace(context, engine=replace(context.engine, parameters=parameters))


def attention_speed(context: Context, config: ServerConfig) -> float:
    """Return how many times as fast as the equations a prefill server's attention is."""
    slow = context.machine.is_blackwell and config.attention_backend == "cutlass_mla"
    return context.engine.parameters.prefill_role * (CUTLASS_MLA_PAIRS if slow else 1.0)


def decode_context(context: Context, config: ServerConfig) -> Context:
    """Return what a decode server's step times depend on, where fleets showed a server's own numbers to be wrong."""
    machine, parameters = context.machine, context.engine.parameters
    if config.moe_a2a_backend == "deepep" and machine.network_bytes_s >= machine.nvlink_bytes_s:
        doublings = max(1.0, math.log2(config.ep_size)) / 3.0  # the equation's, of ranks on several nodes
        parameters = replace(parameters, ep_layer_us=_since(RACK_SYNC_US, context.version) / doublings)
    elif config.nnodes > 1 and machine.is_hopper:
        across_us = INTERNODE_DP_US if config.attn_dp_size > 1 else INTERNODE_US
        parameters = replace(parameters, internode_us=across_us)
    engine = replace(context.engine, parameters=parameters)
    return replace(context, engine=engine, independence=1.0 if machine.is_hopper else context.independence)


def _since(values: Sequence[tuple[str, float]], version: Version) -> float:
    """Return the value of a release from values since releases, newest first."""
    return next(value for since, value in values if at_least(version, since))


def shares_network(config: ServerConfig, machine: Machine) -> bool:
    """Say whether KV caches arrive through the adapters that a decode server's all-reduces need."""
    apart = machine.network_bytes_s < machine.nvlink_bytes_s
    return config.nnodes > 1 and config.attn_dp_size == 1 and apart


def held_tokens(stream_interval: int, ranks: int, batch: float) -> float:
    """Return the tokens that a first token waits for, with `batch` requests running on a decode server."""
    others = stream_interval - 1.0
    if ranks > 1:
        return DP_HELD * others
    return min(TP_HELD, others) * batch / (batch + HALF_HELD)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerModel:
    """One server of a pool: its step times and limits."""

    times: StepTimes
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillModel(ServerModel):
    """One server of a prefill pool: the times of its passes, and its limits over all ranks."""

    times: PrefillTimes


def prefill_role(server: ServerModel, config: ServerConfig, context: Context) -> PrefillModel:
    """Return a server as one that only prefills: its passes at the speed of its role."""
    times = PrefillTimes(
        server.times, speed=prefill_speed(context, config), attention_speed=attention_speed(context, config)
    )
    most = server.limits.max_prefill * config.attn_dp_size  # every rank takes --max-prefill-tokens of its own queue
    return PrefillModel(times=times, limits=replace(server.limits, max_prefill=most))


def decode_role(server: ServerModel, config: ServerConfig, context: Context) -> ServerModel:
    """Return a server as one that only decodes; its step times are those of `decode_context`."""
    times = DecodeTimes(
        server.times,
        speed=context.engine.parameters.decode_role,
        shares_network=shares_network(config, context.machine),
    )
    limits = replace(server.limits, longest_stride=STRIDE, chunk=NO_CAP, max_prefill=NO_CAP)
    return ServerModel(times=times, limits=limits)
