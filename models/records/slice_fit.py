"""Slices: predicts the whole model from measurements of the same model with fewer layers.

Every figure of a step is affine in the layers: a fixed part (host, head, sampling), one MoE layer's part, one dense
layer's. Two slices that differ in one kind of layer give its cost; the prior gives the other parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.engine.profile import EngineProfile
from models.layout import Array
from models.records.case import Case, Run, expected
from models.records.residuals import SCATTER
from models.serving.estimate import Context
from models.serving.uncertainty import BAND_SIGMAS

# `--load-format dummy` draws every weight from +-0.001, norms included: router logits differ between tokens by 1e-5
# and the correction bias by 6e-4, so that all tokens choose the same experts (tests/models/test_slices.py).
DUMMY_INDEPENDENCE = 0.0
# One standard deviation (log) of the fixed part and of a layer's part around the calibrated equations: wide, for the
# measurements to decide wherever they can.
PART_SPREAD = 1.0
# A part whose posterior is wider than this was not determined by the slices.
DETERMINED = 0.35
ROUNDS = 30
LONGEST_MOVE = 0.5
# The equations may give a part as zero; only a positive part can be scaled.
LEAST_SHARE = 0.01
FIGURES = {"tpot_mean_ms": "tpot", "ttft_mean_ms": "ttft", "output_tok_s": "output"}
PARTS = ("fixed", "moe_layer", "dense_layer")


def not_from_slices(
    slices: Sequence[ModelArchitecture], whole: ModelArchitecture, config: ServerConfig, target: ServerConfig
) -> tuple[str, ...]:
    """List the quantities that no slice can show, and their source.

    `config` is the layout that the slices ran with, `target` that of the whole model.
    """
    caveats = [
        "weights and KV cache of the whole model: the ledger's, a slice holds neither",
        "expert routing: dummy weights send every token to the same experts; the profile's popularity stands for text",
        "MTP acceptance: as given, dummy weights accept drafts by chance",
        "first_wave_s: the base profile's, points are measured after a warm-up",
    ]
    if len({arch.num_hidden_layers for arch in slices}) == 1:
        caveats.append(
            "what a step costs apart from its layers: slices of one depth do not tell, the base profile does"
        )
    dense = {arch.dense_layers for arch in slices}
    if len(dense) == 1 and dense != {whole.dense_layers}:
        caveats.append(f"dense layers: every slice has {dense.pop()}, the model {whole.dense_layers}; by the equations")
    if config.tp_size != target.tp_size:
        caveats.append(
            f"collectives of {target.layout}, and how its GPUs share weights: the equations and the machine's figures; "
            f"the slices ran on {config.layout}"
        )
    if target.attn_dp_size > config.attn_dp_size or target.ep_size > config.ep_size:
        caveats.append("dispatch and rank synchronisation of attention DP and EP: constants shared by all versions")
    return tuple(caveats)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a time in ms (of a token for a rate), and one relative standard deviation of it."""

    name: str
    value_ms: float
    deviation: float

    @property
    def determined(self) -> bool:
        """Whether the slices, not the prior, gave it."""
        return self.deviation < DETERMINED


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeFigure:
    """One figure of the whole model under one load, as slices predict it.

    `dummy` is the figure with made-up weights, `value` with the model's own, whose tokens choose different experts;
    `deviation` is one relative standard deviation of either. `all_else_ms` is the time apart from MoE layers, dense
    ones in it (of a token for a rate). Units are the metric's.
    """

    run: Run
    metric: str
    measured: dict[int, float]
    moe_layer: Part
    all_else_ms: float
    dummy: float
    value: float
    deviation: float

    @property
    def band(self) -> tuple[float, float]:
        """The 90 % interval of `value`."""
        factor = math.exp(BAND_SIGMAS * self.deviation)
        return (self.value / factor, self.value * factor)


def whole_kv_tokens(case: Case, whole: ModelArchitecture) -> float:
    """Return the KV tokens that the whole model's ledger leaves in the layout of a slice's case."""
    filled = replace(case.context, arch=whole).memory(case.table)
    return float(filled.kv_tokens[0])


def whole_case(case: Case, whole: ModelArchitecture, kv_tokens: float, independence: float = 1.0) -> Case:
    """Return the question of a slice's case, asked of the whole model with its own weights."""
    context = replace(case.context, arch=whole, independence=independence)
    return replace(case, context=context, kv_tokens=kv_tokens, kv_known=False, measured={}, warnings=())


def predict_whole(cases: Sequence[Case], whole: ModelArchitecture, engine: EngineProfile) -> tuple[WholeFigure, ...]:
    """Return every figure of the whole model that slices under the same load were measured for.

    `cases` are slices of `whole` on one machine, repeats included; `engine` is the profile that was calibrated with
    them: its equations separate the parts of a step that slices cannot. The KV cache is that of the whole model's
    ledger, at most the slices'; layouts that cannot hold the whole model are left out.
    """
    groups: dict[tuple[Run, ServerConfig], list[Case]] = {}
    for case in cases:
        context = replace(case.context, engine=engine)
        groups.setdefault((case.run, case.config), []).append(replace(case, context=context))
    figures = []
    for members in groups.values():
        kv_tokens = min(members[0].kv_tokens, whole_kv_tokens(members[0], whole))
        for metric in FIGURES if kv_tokens >= 1.0 else ():
            by_slice = _measured(members, metric)
            if len(by_slice) > 1:
                figures.append(_foretell(members[0], metric, by_slice, whole, kv_tokens))
    return tuple(figures)


def _measured(cases: Sequence[Case], metric: str) -> dict[tuple[int, int], list[float]]:
    """Return what every slice (MoE layers, dense layers) showed, repeats in a list."""
    by_slice: dict[tuple[int, int], list[float]] = {}
    for case in cases:
        if metric in case.measured:
            arch = case.context.arch
            by_slice.setdefault((arch.moe_layers, arch.dense_layers), []).append(case.measured[metric])
    return by_slice


def _foretell(
    like: Case, metric: str, by_slice: dict[tuple[int, int], list[float]], whole: ModelArchitecture, kv_tokens: float
) -> WholeFigure:
    invert = metric == "output_tok_s"
    times = {layers: [1e3 / v if invert else v for v in values] for layers, values in by_slice.items()}
    middle = {layers: float(np.median(values)) for layers, values in times.items()}
    full = (whole.moe_layers, whole.dense_layers)
    prior = _parts(like, metric, whole, kv_tokens, min(by_slice))
    layers = np.array([(1.0, *each) for each in middle])
    scatter = np.array([_scatter(values, FIGURES[metric]) for values in times.values()])
    scale, covariance = _solve(prior, layers, np.log(list(middle.values())), scatter)
    parts = prior * np.exp(scale)
    shares = np.array((1.0, *full)) * parts
    time_ms = float(shares.sum())
    by = shares / time_ms
    deviation = math.sqrt(float(by @ covariance @ by) + SCATTER[FIGURES[metric]] ** 2)
    routing = _time(whole_case(like, whole, kv_tokens), metric) / _time(
        whole_case(like, whole, kv_tokens, like.context.independence), metric
    )
    return WholeFigure(
        run=like.run,
        metric=metric,
        measured={sum(each): 1e3 / value if invert else value for each, value in middle.items()},
        moe_layer=Part(name=PARTS[1], value_ms=float(parts[1]), deviation=math.sqrt(float(covariance[1, 1]))),
        all_else_ms=time_ms - float(shares[1]),
        dummy=1e3 / time_ms if invert else time_ms,
        value=1e3 / (time_ms * routing) if invert else time_ms * routing,
        deviation=deviation,
    )


def _scatter(values: Sequence[float], kind: str) -> float:
    """One standard deviation of a slice's median (log): by the scatter of its repeats, or of such figures."""
    repeats = float(np.std(np.log(values), ddof=1)) if len(values) > 2 else 0.0
    return max(repeats, SCATTER[kind]) * math.sqrt(math.pi / 2.0 / len(values)) if len(values) > 2 else SCATTER[kind]


def _parts(like: Case, metric: str, whole: ModelArchitecture, kv_tokens: float, least: tuple[int, int]) -> Array:
    """Return the fixed part, a MoE layer's and a dense layer's in ms, as the equations have them for this load."""

    def time(arch: ModelArchitecture) -> float:
        return _time(whole_case(like, arch, kv_tokens, like.context.independence), metric)

    moe, dense = whole.moe_layers, whole.dense_layers
    all_of_it = time(whole)
    fewer = max(1, min(least[0], moe - 1)) if moe > 1 else moe
    per_moe = (all_of_it - time(whole.sliced(dense + fewer))) / (moe - fewer) if moe > fewer else 0.0
    shallow = whole.sliced(moe + dense - 1, dense - 1) if dense and moe else whole
    per_dense = all_of_it - time(shallow) if dense and moe else 0.0
    fixed = all_of_it - moe * per_moe - dense * per_dense
    floor = LEAST_SHARE * all_of_it / whole.num_hidden_layers
    return np.maximum([fixed, per_moe, per_dense], floor)


def _time(case: Case, metric: str) -> float:
    figure = expected(case).figure(metric)
    assert figure is not None, metric
    return 1e3 / figure if metric == "output_tok_s" else figure


def _solve(prior: Array, layers: Array, logs: Array, scatter: Array) -> tuple[Array, Array]:
    """Return the logarithms that the parts are scaled by, and their covariance (Gauss-Newton, log-normal prior)."""
    scale = np.zeros(len(prior))
    precision = np.eye(len(prior)) / PART_SPREAD**2
    for _ in range(ROUNDS):
        each = layers * (prior * np.exp(scale))
        time = each.sum(axis=1)
        slopes = each / time[:, None]
        information = slopes.T @ (slopes / scatter[:, None] ** 2) + precision
        gradient = slopes.T @ ((np.log(time) - logs) / scatter**2) + precision @ scale
        move = np.clip(-np.linalg.solve(information, gradient), -LONGEST_MOVE, LONGEST_MOVE)
        scale = scale + move
        if float(np.max(np.abs(move))) < 1e-6:
            break
    return scale, np.linalg.inv(information)


def dummy_weights(context: Context) -> Context:
    """Return the context with made-up weights."""
    return replace(context, acceptance=0.0, independence=DUMMY_INDEPENDENCE)
