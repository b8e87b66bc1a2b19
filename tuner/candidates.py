"""Every configuration of the space that rules and ledger allow, and what physics says of all of them at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from hwprobe.errors import InputError
from models.config import ServerConfig
from models.estimate import Context, predict_many
from models.layout import Array, table_of
from models.memory import Memory
from models.serving import Serving
from planner.rules import Question, first_error
from planner.search import SAFE_FREE_GIB
from tuner.tuning_space import DEFAULT, TuningSpace

# What a machine may differ by from the belief: one standard deviation of the natural logarithm of each figure.
# The first four are models.calibration's spread of a machine, widened; costs of EP and attention DP are known
# to a factor of two (models.estimate.structural_warnings).
PHYSICS = {
    "tau_us": 0.15, "eta_w": 0.12, "eta_pf": 0.15, "t_pf0_ms": 0.25, "eta_kv": 0.15, "mla_floor_us": 0.20,
    "token_us": 0.25, "host_ms": 0.30, "ep_layer_us": 0.50, "dp_layer_us": 0.50, "acceptance": 0.12, "sigma": 0.30,
}  # fmt: skip
STEP = 0.05
FRACTION = "mem_fraction_static"
LARGEST_ACCEPTANCE = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Row by row: the study's parameters, the configuration they stand for, and its ledger."""

    params: tuple[dict[str, Any], ...]
    configs: tuple[ServerConfig, ...]
    memory: Memory
    space: TuningSpace

    def steady(self, departure: Array) -> Serving:
        """Return the closed form of every row when the machine departs by this much from the belief.

        `departure` counts standard deviations in the order of PHYSICS.
        """
        context = departed(self.space.context, departure)
        return predict_many(context, table_of(list(self.configs)), self.space.workload, self.memory)


@lru_cache(maxsize=4)
def candidates_of(space: TuningSpace) -> Candidates:
    """Return the allowed part of the space, each configuration once."""
    seen: dict[ServerConfig, dict[str, Any]] = {}
    resolved: dict[tuple[Any, ...], ServerConfig] = {}
    for params in _allowed(space):
        fraction = params[FRACTION]
        key = tuple(value for name, value in params.items() if name != FRACTION)
        if fraction == DEFAULT:
            config = space.config(params)
        else:  # nothing else depends on a fraction that was given, and resolving takes a millisecond
            if key not in resolved:
                resolved[key] = space.config(params)
            config = replace(resolved[key], mem_fraction_static=fraction)
        seen.setdefault(config, params)
    configs = list(seen)
    if not configs:
        raise InputError("the rules forbid every configuration of the space; widen --space")
    filled = space.context.memory(table_of(configs))
    fits = (filled.free >= SAFE_FREE_GIB) & (filled.kv_tokens_per_rank >= space.workload.longest_request)
    kept = [config for config, fit in zip(configs, fits, strict=True) if fit]
    if not kept:
        raise InputError("no configuration of the space fits this machine and holds one request; widen --space")
    return Candidates(
        params=tuple(seen[config] for config in kept),
        configs=tuple(kept),
        memory=space.context.memory(table_of(kept)),
        space=space,
    )


def _allowed(space: TuningSpace) -> Iterator[dict[str, Any]]:
    """Yield parameters that no rule forbids; rules tell layouts, MTP depths and chunks apart and nothing else."""
    context = space.context
    names = list(space.choices)
    ruled = ("layout", "mtp_steps", "chunked_prefill_size")
    verdicts: dict[tuple[Any, ...], bool] = {}
    for values in itertools.product(*space.choices.values()):
        params = dict(zip(names, values, strict=True))
        key = tuple(params[name] for name in ruled)
        if key not in verdicts:
            config = space.config(params)
            question = Question(config=config, arch=context.arch, machine=context.machine, version=context.version)
            verdicts[key] = first_error(question) is None
        if verdicts[key]:
            yield params


def departed(belief: Context, departure: Array) -> Context:
    """Return the belief with every figure of PHYSICS moved by so many standard deviations."""
    factor = {name: float(np.exp(spread * z)) for (name, spread), z in zip(PHYSICS.items(), departure, strict=True)}
    figures = belief.engine.parameters
    moved = {name: getattr(figures, name) * by for name, by in factor.items() if hasattr(figures, name)}
    sigma = belief.engine.sigma if belief.sigma is None else belief.sigma
    return replace(
        belief,
        engine=replace(belief.engine, parameters=replace(figures, **moved)),
        acceptance=min(LARGEST_ACCEPTANCE, belief.acceptance * factor["acceptance"]),
        sigma=sigma * factor["sigma"],
    )


def slopes(rows: Candidates, departure: Array, metric: str) -> tuple[Array, Array]:
    """Return log(metric) of every row, and its change per standard deviation of each figure (rows x PHYSICS)."""
    here = log_figure(rows.steady(departure), metric)
    columns = []
    for index in range(len(PHYSICS)):
        aside = departure.copy()
        aside[index] += STEP
        columns.append((log_figure(rows.steady(aside), metric) - here) / STEP)
    return here, np.stack(columns, axis=1)


def log_figure(steady: Serving, metric: str) -> Array:
    """Return the natural logarithm of a figure of the closed form: output_tok_s, or tpot, ttft, e2e in ms."""
    values = {
        "output_tok_s": steady.output_tok_s,
        "tpot": steady.tpot_s * 1e3,
        "ttft": steady.ttft_s * 1e3,
        "e2e": steady.e2e_s * 1e3,
    }[metric]
    logarithms: Array = np.log(np.maximum(values, 1e-9))
    return logarithms


# One standard deviation of what a knob, or two together, may do beyond the physics above.
KNOB_SPREAD = {
    ("attn_dp",): 0.05, ("ep",): 0.06, ("pp",): 0.08, ("mtp",): 0.05, ("chunk",): 0.02, ("graph",): 0.02,
    ("attn_dp", "ep"): 0.03, ("attn_dp", "mtp"): 0.04, ("ep", "mtp"): 0.04, ("attn_dp", "chunk"): 0.02,
    ("attn_dp", "ep", "pp", "mtp"): 0.03,
}  # fmt: skip


def knob_names(config: ServerConfig) -> list[tuple[str, float]]:
    """Return every knob setting and pair of settings of a configuration, with the spread of its effect."""
    setting = {
        "attn_dp": config.attn_dp_size,
        "ep": (config.ep_size, config.moe_a2a_backend or "none"),
        "pp": config.pp_size,
        "mtp": config.speculative.num_steps if config.speculative else 0,
        "chunk": config.chunked_prefill_size,
        "graph": config.cuda_graph_max_bs_decode,
    }
    return [(" & ".join(f"{knob} {setting[knob]}" for knob in knobs), spread) for knobs, spread in KNOB_SPREAD.items()]


def knob_features(configs: tuple[ServerConfig, ...]) -> tuple[list[str], Array]:
    """Return the names of all settings and pairs, and which each row has, scaled by spread (rows x names)."""
    described = [knob_names(config) for config in configs]
    names = sorted({name for row in described for name, _ in row})
    place = {name: index for index, name in enumerate(names)}
    features = np.zeros((len(configs), len(names)))
    for row, settings in enumerate(described):
        for name, spread in settings:
            features[row, place[name]] = spread
    return names, features
