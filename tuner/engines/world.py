"""World: the truth of the simulated and emulated engines, apart from the planner's belief. The tuner never reads it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from hwprobe.bounds import WORLD, check_fields, within
from hwprobe.errors import InputError, did_you_mean
from hwprobe.files import LAUNCH_FILE_BYTES, read_bytes
from hwprobe.parsing import load_toml
from models.config import ServerConfig
from models.costs.balance import expert_balancedness
from models.costs.decode import decode_step
from models.engine.profile import EngineParameters
from models.layout import table_of
from models.records.slice_fit import dummy_weights
from models.serving.estimate import Context
from models.serving.fleet_replay import Transfer, transfer_of
from tuner.engines.faults import PHASES, Fault

Positive = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
NotNegative = Annotated[float, Meta(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Step times are multiplied by `time_factor` when every knob in `when` has the value given.

    Knobs are fields of ServerConfig, `mtp_steps` and `role` ("mixed", "prefill" or "decode"); two knobs in one effect
    are an interaction. `on` says whether it shows on the whole model, on a slice of it, or on both.
    """

    when: dict[str, int | float | str | bool]
    time_factor: Positive
    on: Literal["both", "whole", "slice"] = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowRank:
    """One rank takes `factor` times as long for its part of every step; the others wait for it."""

    rank: Annotated[int, Meta(ge=0)] = 0
    factor: Annotated[float, Meta(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The truth where the engine runs.

    `parameters` multiplies engine parameters; `extra_memory_gib` is used beyond the ledger; `noise` is the relative
    standard deviation of a measurement; `expert_balance` is the mean over the largest of the GPUs' shares of tokens
    under expert parallelism, by default what the spread of popularity gives; `boot_s` is the time of one launch,
    `slice_boot_s` that of a slice; `faults` happen in the emulated server only. `node_factors` multiply the step times
    of servers on nodes of a cluster, by the name of the (first) node, `server_factors` those of servers of a
    deployment, by their names ("decode-1"). Between a prefill and a decode server the KV cache of one request moves at
    `transfer_gb_s`, after handshakes of `transfer_latency_ms`.
    """

    name: str = "unnamed"
    parameters: dict[str, Positive] = field(default_factory=dict)
    sigma: NotNegative | None = None
    acceptance: Fraction | None = None
    extra_memory_gib: float = 0.0
    noise: Annotated[float, Meta(ge=0, le=0.5)] = 0.015
    boot_s: Positive = 420.0
    slice_boot_s: Positive = 60.0
    effects: tuple[Effect, ...] = ()
    slow_rank: SlowRank | None = None
    expert_balance: Annotated[float, Meta(gt=0, le=1)] | None = None
    faults: tuple[Fault, ...] = ()
    node_factors: dict[str, Positive] = field(default_factory=dict)
    server_factors: dict[str, Positive] = field(default_factory=dict)
    transfer_gb_s: Positive | None = None
    transfer_latency_ms: NotNegative | None = None

    def truth(self, belief: Context, config: ServerConfig, node: str = "", server: str = "") -> Context:
        """Return the context that is true for this configuration on this node, starting from the planner's belief.

        `server` is its name in a deployment. A slice has made-up weights: they accept no draft, and send every token to
        the same experts.
        """
        slower = self.node_factors.get(node, 1.0) * self.server_factors.get(server, 1.0)
        sliced = belief.arch.sliced_from > 0
        for effect in self.effects:
            if effect.on in ("both", "slice" if sliced else "whole") and all(
                _knob(config, name) == value for name, value in effect.when.items()
            ):
                slower *= effect.time_factor
        slower *= self.slow_rank.factor if self.slow_rank else 1.0
        slower *= self._unbalanced(belief, config)
        true = {name: getattr(belief.engine.parameters, name) * factor for name, factor in self.parameters.items()}
        parameters = _slowed(replace(belief.engine.parameters, **true), slower)
        if sliced:
            belief = dummy_weights(belief)
            return replace(belief, engine=replace(belief.engine, parameters=parameters))
        return replace(
            belief,
            engine=replace(belief.engine, parameters=parameters),
            sigma=belief.sigma if self.sigma is None else self.sigma,
            acceptance=belief.acceptance if self.acceptance is None else self.acceptance,
        )

    def balancedness(self, context: Context, config: ServerConfig) -> float:
        """Return how evenly the experts' GPUs are loaded: what SGLang calls eplb_balancedness."""
        natural = expert_balancedness(context.arch.n_routed_experts, config.ep_size, context.spread)
        return natural if self.expert_balance is None else self.expert_balance

    def _unbalanced(self, belief: Context, config: ServerConfig) -> float:
        """Return what uneven experts multiply a step by: the busiest GPU's share of the experts' part."""
        if self.expert_balance is None or config.ep_size <= 1:
            return 1.0
        natural = expert_balancedness(belief.arch.n_routed_experts, config.ep_size, belief.spread)
        step = decode_step(belief.system(table_of([config])), np.array([TYPICAL_BATCH]), np.array([TYPICAL_CONTEXT]))
        return 1.0 + float((step.experts / step.total)[0]) * (natural / self.expert_balance - 1.0)

    def transfer(self, truth: Context) -> Transfer:
        """Return what moving one request's KV cache costs here; what the world leaves open is as believed."""
        believed = transfer_of(truth)
        latency_ms = 1e3 * believed.latency_s if self.transfer_latency_ms is None else self.transfer_latency_ms
        gb_s = believed.bytes_s / 1e9 if self.transfer_gb_s is None else self.transfer_gb_s
        return replace(believed, latency_s=latency_ms / 1e3, bytes_s=1e9 * gb_s)

    def start_s(self, context: Context) -> float:
        """Return the seconds of one launch of this model."""
        return self.slice_boot_s if context.arch.sliced_from else self.boot_s


# The batch and context at which the experts' part of a step is taken.
TYPICAL_BATCH, TYPICAL_CONTEXT = 128.0, 1500.0
# Times are multiplied and efficiencies divided, so that an effect slows every part of a step alike.
_TIMES = ("tau_us", "t_pf0_ms", "mla_floor_us", "token_us", "host_ms", "ep_layer_us", "dp_layer_us")
_EFFICIENCIES = ("eta_w", "eta_pf", "eta_kv")


def _slowed(parameters: EngineParameters, factor: float) -> EngineParameters:
    times = {name: getattr(parameters, name) * factor for name in _TIMES}
    efficiencies = {name: getattr(parameters, name) / factor for name in _EFFICIENCIES}
    return replace(parameters, **times, **efficiencies)


def _knob(config: ServerConfig, name: str) -> Any:
    if name == "mtp_steps":
        return config.speculative.num_steps if config.speculative else 0
    if name == "role":
        return {"null": "mixed"}.get(mode := config.flag("disaggregation_mode", "null"), mode)
    return getattr(config, name)


def load_world(path: Path | None) -> World:
    """Read a world file, or the default world. Raises InputError naming the field that is wrong."""
    if path is None:
        data, where = files("tuner").joinpath("worlds/default.toml").read_bytes(), "default.toml"
    else:
        data, where = read_bytes(path, "world", most_bytes=LAUNCH_FILE_BYTES), str(path)
    try:
        world = msgspec.convert(load_toml(data, where), World, strict=True)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {error}") from error
    _check_names(world, where)
    check_fields(world, {name: bound for name, bound in WORLD.items() if name != "parameters"}, where)
    for name, factor in world.parameters.items():
        within(factor, f"parameters.{name}", WORLD["parameters"], where)
    for table, factors in (("node_factors", world.node_factors), ("server_factors", world.server_factors)):
        for factor in factors.values():
            within(factor, f"a factor of {table}", WORLD["time_factor"], where)
    for effect in world.effects:
        within(effect.time_factor, "time_factor of an effect", WORLD["time_factor"], where)
    return world


def _check_names(world: World, where: str) -> None:
    parameters = [item.name for item in fields(EngineParameters)]
    knobs = [*(item.name for item in fields(ServerConfig) if item.name != "speculative"), "mtp_steps", "role"]
    for name in world.parameters:
        if name not in parameters:
            raise InputError(f"{where}: unknown engine parameter '{name}'; {did_you_mean(name, parameters)}")
    for fault in world.faults:
        if fault.phase not in PHASES:
            raise InputError(f"{where}: unknown phase '{fault.phase}' of a fault; {did_you_mean(fault.phase, PHASES)}")
    for effect in world.effects:
        for name in effect.when:
            if name not in knobs:
                raise InputError(f"{where}: unknown knob '{name}' in an effect; {did_you_mean(name, knobs)}")
