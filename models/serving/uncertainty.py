"""How wrong a prediction may be: the profile's covariance carried through, plus stated structural errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.config import ServerConfig
from models.costs.launches import launch_floor_s
from models.costs.system import System
from models.costs.weight_kernels import SPARSE, shares_of
from models.engine.profile import FITTED, EngineProfile
from models.layout import Array
from models.machine import Machine
from models.serving.closed_form import ClosedForm

# Two-sided 90 % band of a normal error.
BAND_SIGMAS = 1.645
# Structural classes and the relative error to add to the profile's: few public measurements exist.
STRUCTURAL_ERROR = {
    "attention DP": 0.10,
    "EP": 0.15,
    "PP": 0.25,
    "several nodes": 0.25,
    "MTP": 0.15,
    "GPU family": 0.20,
    # Another number of experts than any fitted record's.
    "another model": 0.10,
}
FITTED_EXPERTS = 256
# Sparse attention beyond the CUDA graphs: one published run decodes five times as slowly as predicted (8xH200, TP8,
# 1,000 requests on 0.5.6), and nothing says of what.
SPARSE_EAGER_ERROR = 1.0
STREAMED = ("attention_gemm", "experts", "shared_expert", "gate", "dense_mlp", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """One standard deviation of the relative error of each figure."""

    tpot: float
    ttft: float
    output_tok_s: float

    def with_more(self, *, tpot: float, ttft: float, output_tok_s: float) -> Errors:
        """Return the errors with independent ones added."""
        return Errors(
            tpot=float(np.hypot(self.tpot, tpot)),
            ttft=float(np.hypot(self.ttft, ttft)),
            output_tok_s=float(np.hypot(self.output_tok_s, output_tok_s)),
        )

    def with_acceptance(self, spread: float) -> Errors:
        """Return the errors of a speculative server; `spread`: one relative deviation of what a step yields."""
        return self.with_more(tpot=spread, ttft=0.0, output_tok_s=spread)

    def around(self, ttft_ms: float, tpot_ms: float, output_tok_s: float) -> dict[str, tuple[float, float]]:
        """Return the 90 % bands of mean TTFT and TPOT in ms, and of output tokens per second."""
        return {
            "tpot_mean_ms": _band(tpot_ms, self.tpot),
            "ttft_mean_ms": _band(ttft_ms, self.ttft),
            "output_tok_s": _band(output_tok_s, self.output_tok_s),
        }


def _band(value: float, error: float) -> tuple[float, float]:
    factor = float(np.exp(BAND_SIGMAS * error))
    return (value / factor, value * factor)


def errors(
    engine: EngineProfile,
    system: System,
    config: ServerConfig,
    steady: ClosedForm,
    osl: float,
) -> Errors:
    """Return the expected errors of the one configuration in `system` whose steady state is `steady`."""
    tpot_by, ttft_by = _elasticities(system, steady, osl)
    tpot_s, ttft_s = (float(np.ravel(x)[0]) for x in (steady.tpot_s, steady.ttft_s))
    decoding = tpot_s * max(osl - 1.0, 0.0)
    share = decoding / max(decoding + ttft_s, 1e-12)
    rate_by = -(share * tpot_by + (1.0 - share) * ttft_by)
    covariance = np.array(engine.covariance)
    structural = sum(STRUCTURAL_ERROR[name] ** 2 for name in structural_classes(engine, system.machine, config))
    of_checkpoint = _of_checkpoint(system, steady)
    decode = float(np.hypot(engine.relative_error.decode, of_checkpoint.decode))
    prefill, own_prefill = engine.relative_error.prefill, of_checkpoint.prefill

    def total(by: Array, own: float) -> float:
        return float(np.sqrt(max(by @ covariance @ by, 0.0) + own**2 + structural))

    stall = 1.0 - _decode_share(steady)
    waiting = stall * share + (1.0 - share)  # of a request's time, in others' prefill and its own
    # A machine's day-to-day scatter halves over the passes a token waits for; what a kernel is off stays.
    in_tpot, in_rate = (float(np.hypot(0.5 * each * prefill, each * own_prefill)) for each in (stall, waiting))
    return Errors(
        tpot=total(tpot_by, float(np.hypot(decode, in_tpot))),
        ttft=total(ttft_by, float(np.hypot(prefill, own_prefill))),
        output_tok_s=total(rate_by, float(np.hypot(decode, in_rate))),
    )


def structural_classes(engine: EngineProfile, machine: Machine, config: ServerConfig) -> list[str]:
    """Name the aspects of a configuration that the fitted parameters do not cover."""
    present: Mapping[str, bool] = {
        "attention DP": config.attn_dp_size > 1,
        "EP": config.ep_size > 1,
        "PP": config.pp_size > 1,
        "several nodes": config.nnodes > 1,
        "MTP": config.speculative is not None,
        "GPU family": engine.gpu_family != machine.family,
    }
    return [name for name, holds in present.items() if holds]


@dataclass(frozen=True, slots=True)
class _Unfitted:
    """One standard deviation of what a checkpoint's own kernels leave in decode steps and in prefill."""

    decode: float
    prefill: float


def _of_checkpoint(system: System, steady: ClosedForm) -> _Unfitted:
    """Return what of a checkpoint the profile's parameters do not speak for: kernels, attention, number of experts."""
    arch, machine, table, _ = system.parts
    kernel = shares_of(arch, machine)
    parts = [(kernel.decode_error, kernel.prefill_error)]
    if arch.is_sparse:
        parts.append((SPARSE.decode_error, SPARSE.prefill_error))
        on_rank = float(np.ravel(steady.running / table.attn_dp)[0])
        if on_rank > float(table.graph_max_bs[0]) or not table.graphs[0]:
            parts.append((SPARSE_EAGER_ERROR, SPARSE_EAGER_ERROR))
    if arch.n_routed_experts != FITTED_EXPERTS:
        parts.append((STRUCTURAL_ERROR["another model"],) * 2)
    decode, prefill = np.linalg.norm(np.array(parts), axis=0).tolist()
    return _Unfitted(decode, prefill)


def _decode_share(steady: ClosedForm) -> float:
    """Share of the time per output token that is decode steps; the rest is other requests' prefill."""
    tpot_s = float(np.ravel(steady.tpot_s)[0])
    return min(1.0, float(np.ravel(steady.seconds_per_token)[0]) / max(tpot_s, 1e-12))


def _elasticities(system: System, steady: ClosedForm, osl: float) -> tuple[Array, Array]:
    """Relative change of TPOT and TTFT per relative change of each FITTED parameter.

    Read off the breakdown: a cost that is x % of the time moves it by x % of its own change.
    """
    parts = {name: float(np.ravel(values)[0]) for name, values in steady.step.parts_ms().items()}
    step_ms = float(np.ravel(steady.step_s)[0]) * 1e3
    decode = _decode_share(steady)
    pass_s = float(np.ravel(steady.prefill_pass_s)[0])
    floor = min(1.0, (launch_floor_s(system.arch, system.engine.t_pf0_ms) / max(pass_s, 1e-12)) ** 4)
    by = {
        "tau_us": parts["launch"] / step_ms,
        "eta_w": -sum(parts[name] for name in STREAMED) / step_ms,
    }
    ttft_s = float(np.ravel(steady.ttft_s)[0])
    tpot_by = {
        **{name: decode * value for name, value in by.items()},
        "eta_pf": -(1.0 - decode) * (1.0 - floor),
        "t_pf0_ms": (1.0 - decode) * floor,
    }
    passes = min(1.0, pass_s / max(ttft_s, 1e-12))
    queue = 1.0 - passes
    ttft_by = {
        **{name: queue * value for name, value in tpot_by.items()},
        "eta_pf": -(passes * (1.0 - floor)) + queue * tpot_by["eta_pf"],
        "t_pf0_ms": passes * floor + queue * tpot_by["t_pf0_ms"],
    }
    return _vector(tpot_by), _vector(ttft_by)


def _vector(by: dict[str, float]) -> Array:
    return np.array([by.get(name, 0.0) for name in FITTED])
