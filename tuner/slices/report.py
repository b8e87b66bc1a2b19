"""Results of slices: a layer's cost, the whole model's prediction, and the quantities from other sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hwprobe.errors import InputError
from models.architecture import ModelArchitecture
from models.engine.profile import EngineProfile
from models.records.case import Case, CasePrediction, predict_case
from models.records.slice_fit import WholeFigure, not_from_slices, predict_whole
from models.serving.uncertainty import Errors
from tuner.slices.launch import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class OnTarget:
    """One load of the ladder on the machine and layout that the whole model is meant for, by the equations."""

    case: Case
    expected: CasePrediction
    errors: Errors


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceReport:
    """`figures` are the whole model's where the slices ran, `on_target` those of another machine or layout."""

    slices: tuple[ModelArchitecture, ...]
    whole: ModelArchitecture
    figures: tuple[WholeFigure, ...]
    on_target: tuple[OnTarget, ...]
    elsewhere: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the part of `calibrate --json` that is about slices."""
        return {
            "layers": [arch.num_hidden_layers for arch in self.slices],
            "dense_layers": [arch.dense_layers for arch in self.slices],
            "whole_layers": self.whole.num_hidden_layers,
            "figures": [_figure(figure) for figure in self.figures],
            "on_target": [_on_target(answer) for answer in self.on_target],
            "not_from_slices": list(self.elsewhere),
        }


def slice_report(
    cases: Sequence[Case], whole: ModelArchitecture, engine: EngineProfile, target: Layout | None = None
) -> SliceReport | None:
    """Return the whole model's figures by the slices among the cases; None without slices.

    `target` is the machine and layout the whole model is meant for, where it is another than the slices'.
    """
    sliced = [case for case in cases if case.context.arch.sliced_from]
    if not sliced:
        return None
    slices = sorted({case.context.arch for case in sliced}, key=lambda arch: arch.num_hidden_layers)
    config = sliced[0].config
    return SliceReport(
        slices=tuple(slices),
        whole=whole,
        figures=predict_whole([case for case in cases if case.run.kind == "steady"], whole, engine),
        on_target=_foreseen_on(target, sliced, engine) if target else (),
        elsewhere=not_from_slices(slices, whole, config, target.config if target else config),
    )


def _foreseen_on(target: Layout, cases: Sequence[Case], engine: EngineProfile) -> tuple[OnTarget, ...]:
    """Predict every load of the ladder on the target. Raises InputError where the whole model does not fit there."""
    if target.kv_tokens < 1.0:
        raise InputError(
            f"--target: {target.context.arch.name} does not fit {target.context.machine.name} as {target.config.layout}"
        )
    answers = []
    for run in dict.fromkeys(case.run for case in cases):
        case = Case(
            id=f"{run.isl.nominal}-{run.osl.nominal}-c{run.concurrency}",
            context=replace(target.context, engine=engine),
            config=target.config,
            run=run,
            kv_tokens=target.kv_tokens,
            kv_known=False,
        )
        answers.append(OnTarget(case=case, expected=(prediction := predict_case(case))[0], errors=prediction[1]))
    return tuple(answers)


def _figure(figure: WholeFigure) -> dict[str, Any]:
    moe = figure.moe_layer
    return {
        "isl": figure.run.isl.nominal,
        "osl": figure.run.osl.nominal,
        "concurrency": figure.run.concurrency,
        "metric": figure.metric,
        "measured": {str(layers): value for layers, value in figure.measured.items()},
        "moe_layer_ms": moe.value_ms,
        "all_else_ms": figure.all_else_ms,
        "moe_layer_determined": moe.determined,
        "whole_with_dummy_weights": figure.dummy,
        "whole": figure.value,
        "band": list(figure.band),
    }


def _on_target(answer: OnTarget) -> dict[str, Any]:
    expected, run = answer.expected, answer.case.run
    band = answer.errors.around(expected.ttft_mean_ms or 1.0, expected.tpot_mean_ms, expected.output_tok_s)
    return {
        "isl": run.isl.nominal,
        "osl": run.osl.nominal,
        "concurrency": run.concurrency,
        "layout": answer.case.config.layout,
        "machine": answer.case.context.machine.name,
        "ttft_mean_ms": expected.ttft_mean_ms,
        "tpot_mean_ms": expected.tpot_mean_ms,
        "output_tok_s": expected.output_tok_s,
        "band": {name: list(interval) for name, interval in band.items()},
    }
