"""Every configuration of the space that rules and ledger allow, and the closed form of all of them at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hwprobe.errors import InputError
from models.config import ServerConfig
from models.costs.memory import Memory
from models.layout import Array, ConfigTable, table_of
from models.serving.closed_form import ClosedForm
from models.serving.estimate import Context, predict_many
from planner.plans.alternatives import DEFAULT
from planner.plans.search import SAFE_FREE_GIB
from planner.rules import Question, first_error
from tuner.search.closed_form import Figure
from tuner.search.space import CORE, TuningSpace

# Spread of a machine around the belief: one standard deviation of the natural logarithm of each figure. The first four
# are models.records.calibration's spread of a machine, widened; costs of EP and attention DP are known to a factor of
# two (models.serving.caveats.structural_warnings).
PHYSICS = {
    "tau_us": 0.15, "eta_w": 0.12, "eta_pf": 0.15, "t_pf0_ms": 0.25, "eta_kv": 0.15, "mla_floor_us": 0.20,
    "token_us": 0.25, "host_ms": 0.30, "ep_layer_us": 0.50, "dp_layer_us": 0.50, "acceptance": 0.12, "sigma": 0.30,
}  # fmt: skip
STEP = 0.05
FRACTION = "mem_fraction_static"
# Log units within which two rows count as equal.
SAME = 0.002
LARGEST_ACCEPTANCE = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Row by row: the study's parameters, the configuration they stand for, and its ledger."""

    params: tuple[dict[str, Any], ...]
    configs: tuple[ServerConfig, ...]
    table: ConfigTable
    memory: Memory
    space: TuningSpace

    def steady(self, parameter_shift_sigmas: Array) -> ClosedForm:
        """Return the closed form of every row when the machine departs by this much from the belief.

        `parameter_shift_sigmas` counts standard deviations in the order of PHYSICS.
        """
        context = self.departed(parameter_shift_sigmas)
        return predict_many(context, self.table, self.space.workload, self.memory)

    def departed(self, parameter_shift_sigmas: Array) -> Context:
        """Return the context of such a machine."""
        return departed(self.space.context, parameter_shift_sigmas)

    def take(self, index: npt.NDArray[np.intp]) -> Candidates:
        """Return some of the rows."""
        return rows_of(self.space, [(self.params[i], self.configs[i]) for i in index.tolist()])


def rows_of(space: TuningSpace, settled: Sequence[tuple[dict[str, Any], ServerConfig]]) -> Candidates:
    """Return the rows of these parameters and configurations."""
    configs = tuple(config for _, config in settled)
    table = table_of(list(configs))
    return Candidates(
        params=tuple(params for params, _ in settled),
        configs=configs,
        table=table,
        memory=space.context.memory(table),
        space=space,
    )


@lru_cache(maxsize=4)
def candidates_of(space: TuningSpace) -> Candidates:
    """Return the allowed part of the space, each configuration once."""
    params_of: dict[ServerConfig, dict[str, Any]] = {}
    resolved: dict[tuple[Any, ...], ServerConfig] = {}
    for params in _allowed(space):
        fraction = params[FRACTION]
        key = tuple(value for name, value in params.items() if name != FRACTION)
        if fraction == DEFAULT:
            config = space.config(params)
        else:  # no other field depends on a typed fraction, and resolving takes a millisecond
            if key not in resolved:
                resolved[key] = space.config(params)
            config = replace(resolved[key], mem_fraction_static=fraction)
        params_of.setdefault(config, params)
    configs = list(params_of)
    if not configs:
        raise InputError("the rules forbid every configuration of the space; widen --space")
    candidates = fitting(rows_of(space, [(params_of[config], config) for config in configs]))
    if not candidates.configs:
        raise InputError("no configuration of the space fits this machine and holds one request; widen --space")
    return candidates


def fitting(rows: Candidates) -> Candidates:
    """Return the rows that the ledger allows: room for one request, and some memory left."""
    memory, longest = rows.memory, rows.space.workload.longest_request
    fits = (memory.free >= SAFE_FREE_GIB) & (memory.kv_tokens_per_rank >= longest)
    return rows if bool(fits.all()) else rows.take(np.flatnonzero(fits))


def undominated(rows: Candidates, belief: Array, excess: Array) -> npt.NDArray[np.intp]:
    """Return the rows that are not beaten by one that differs in the memory fraction alone.

    Beaten: another leaves more memory free, is expected to be as fast, and to miss no limit by more.
    """
    memory, workload = rows.memory, rows.space.workload
    ranks = np.array([config.attn_dp_size for config in rows.configs])
    room = np.minimum(memory.kv_tokens_per_rank, np.ceil(workload.concurrency / ranks) * workload.longest_request)
    groups: dict[ServerConfig, list[int]] = {}
    for index, config in enumerate(rows.configs):
        groups.setdefault(replace(config, mem_fraction_static=None), []).append(index)
    survivors: list[int] = []
    for members in groups.values():
        members.sort(key=lambda i: -float(rows.memory.free[i]))
        unbeaten: list[int] = []
        for i in members:
            if not any(
                belief[j] >= belief[i] - SAME and excess[j] <= excess[i] + SAME and room[j] >= room[i] for j in unbeaten
            ):
                unbeaten.append(i)
        survivors += unbeaten
    return np.array(sorted(survivors), dtype=np.intp)


def _allowed(space: TuningSpace) -> Iterator[dict[str, Any]]:
    """Yield parameters that no rule forbids; rules depend on layout, MTP depth and chunk alone."""
    ruled = ("layout", "mtp_steps", "chunked_prefill_size")
    verdicts: dict[tuple[Any, ...], bool] = {}
    for values in itertools.product(*(space.choices[name] for name in CORE)):
        params = dict(zip(CORE, values, strict=True)) | space.defaults
        key = tuple(params[name] for name in ruled)
        if key not in verdicts:
            verdicts[key] = allowed(space, space.config(params))
        if verdicts[key]:
            yield params


def allowed(space: TuningSpace, config: ServerConfig) -> bool:
    """Say whether no rule forbids a configuration."""
    context = space.context
    question = Question(config=config, arch=context.arch, machine=context.machine, version=context.version)
    return first_error(question) is None


def departed(belief: Context, parameter_shift_sigmas: Array) -> Context:
    """Return the belief with every figure of PHYSICS moved by so many standard deviations."""
    factor = {
        name: float(np.exp(spread * z))
        for (name, spread), z in zip(PHYSICS.items(), parameter_shift_sigmas, strict=True)
    }
    figures = belief.engine.parameters
    moved = {name: getattr(figures, name) * by for name, by in factor.items() if hasattr(figures, name)}
    sigma = belief.engine.sigma if belief.sigma is None else belief.sigma
    return replace(
        belief,
        engine=replace(belief.engine, parameters=replace(figures, **moved)),
        acceptance=min(LARGEST_ACCEPTANCE, belief.acceptance * factor["acceptance"]),
        sigma=sigma * factor["sigma"],
    )


def slopes(rows: Candidates, parameter_shift_sigmas: Array, figure: Figure) -> tuple[Array, Array]:
    """Return a figure of every row, and its change per standard deviation of each of PHYSICS (rows x PHYSICS)."""
    base = figure(rows, parameter_shift_sigmas)
    columns = []
    for index in range(len(PHYSICS)):
        aside = parameter_shift_sigmas.copy()
        aside[index] += STEP
        columns.append((figure(rows, aside) - base) / STEP)
    return base, np.stack(columns, axis=1)


# One standard deviation of the effect of a knob, or of two together, beyond the physics above.
KNOB_SPREAD = {
    ("attn_dp",): 0.06, ("ep",): 0.07, ("pp",): 0.08, ("mtp",): 0.07, ("chunk",): 0.04, ("graph",): 0.005,
    ("attn_dp", "ep"): 0.04, ("attn_dp", "mtp"): 0.045, ("ep", "mtp"): 0.045, ("attn_dp", "chunk"): 0.025,
    ("ep", "chunk"): 0.025, ("mtp", "chunk"): 0.025,
    ("attn_dp", "ep", "pp", "mtp"): 0.03,
}  # fmt: skip
# The same for a knob no equation prices, away from where it rests (there its effect is 1 by definition).
UNPRICED_SPREAD = {
    "moe_runner_backend": 0.03, "attention_backend": 0.025, "page_size": 0.01, "kv_cache_dtype": 0.02,
    "schedule_conservativeness": 0.01, "enable_mixed_chunk": 0.02, "scheduler_recv_interval": 0.01,
    "stream_interval": 0.02, "disable_radix_cache": 0.015,
}  # fmt: skip
# These keep the spread they were given, however large other effects turn out: they are small for a reason.
UNSCALED = ("graph", *UNPRICED_SPREAD)


def knob_names(config: ServerConfig, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return every knob setting and pair of settings of a configuration, with the spread of its effect."""
    setting = {
        "attn_dp": config.attn_dp_size,
        "ep": (config.ep_size, config.moe_a2a_backend or "none"),
        "pp": config.pp_size,
        "mtp": config.speculative.num_steps if config.speculative else 0,
        "chunk": config.chunked_prefill_size,
        "graph": config.cuda_graph_max_bs_decode,
    }
    priced = [
        (" & ".join(f"{knob} {setting[knob]}" for knob in knobs), spread) for knobs, spread in KNOB_SPREAD.items()
    ]
    moved = [
        (f"{name} {params[name]}", UNPRICED_SPREAD[name])
        for name, rest in defaults.items()
        if params.get(name, rest) != rest
    ]
    return priced + moved


def knob_features(rows: Sequence[Candidates]) -> tuple[list[str], Array]:
    """Return the names of all settings and pairs, and which each row has, scaled by spread (rows x names)."""
    described = [
        knob_names(config, params, part.space.defaults)
        for part in rows
        for config, params in zip(part.configs, part.params, strict=True)
    ]
    names = sorted({name for row in described for name, _ in row})
    place = {name: index for index, name in enumerate(names)}
    features = np.zeros((len(described), len(names)))
    for row, settings in enumerate(described):
        for name, spread in settings:
            features[row, place[name]] = spread
    return names, features
