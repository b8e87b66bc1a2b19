"""What a run would do: first launches, hours, what may vary, and what was ruled out and why. Nothing is written."""

from __future__ import annotations

from typing import Any

from planner.launch import launch_spec
from planner.plans.alternatives import UNMODELLED
from planner.plans.space import as_launched
from planner.traffic_plans.traced import predict_load
from tuner.choices import SIMULATED_ENGINES, Fidelity
from tuner.run.load_ladder import LoadLadder
from tuner.run.setup import Prepared
from tuner.search.configurations import candidates_of
from tuner.slices.records import slices_outlook

# A point takes the time of so many requests one after the other: a wave to warm up, and those that count.
WAVES = 5.3
# What a launch of this model takes on eight GPUs where no world says it.
BOOT_S = 420.0


def dry_run_document(prepared: Prepared) -> dict[str, Any]:
    """Return the document of `sgtune tune --dry-run --json`."""
    question, space, context = prepared.question, prepared.space, prepared.plan.context
    virtual = question.engine in SIMULATED_ENGINES
    boot_s = question.world.boot_s if virtual else BOOT_S
    again = question.confirm + 1 if question.confirm else 0
    first: list[dict[str, Any]] = []
    for source, params in prepared.seeds:
        config = space.config(params)
        loads = LoadLadder(goal=question.goal, workload=prepared.workload).loads(config, context)
        predicted = [predict_load(context, config, load, question.plan.slos) for load in loads]
        least_s = 0.0 if virtual else question.point_s
        first.append(
            {
                "source": source,
                "label": config.label,
                "config": as_launched(config, context.version).as_dict(),
                "argv": launch_spec(config, context.version, model_path=question.model_path).argv(),
                "loads": [load.request_rate or load.concurrency for load in loads],
                "predicted_output_tok_s": predicted[-1].output_tok_s,
                "seconds": boot_s + sum(max(least_s, WAVES * f.e2e_ms["mean"] / 1e3) for f in predicted),
            }
        )
    each_s = sum(float(item["seconds"]) for item in first) / len(first)
    launches = question.trials + again
    return {
        "engine": str(question.engine),
        "simulated": virtual,
        "launches": question.trials,
        "confirmations": again,
        "candidates": len(candidates_of(space).configs),
        "moves": {name: list(space.choices[name][1:]) for name in UNMODELLED if len(space.choices[name]) > 1},
        "seconds_per_launch": each_s,
        "slices": _slices(prepared, boot_s),
        "hours": min(launches * each_s, question.budget_s + each_s) / 3600.0,
        "first": first,
        "ruled_out": [
            {"label": item.config.label, "kind": item.kind, "reason": item.reason}
            for item in prepared.plan.found.rejected
        ],
        "ruled_out_by_reason": prepared.plan.found.rejected_by_reason(),
        **({} if question.traffic is None else {"traffic": question.traffic.document()}),
    }


def _slices(prepared: Prepared, boot_s: float) -> dict[str, Any] | None:
    question = prepared.question
    if question.fidelity is not Fidelity.SLICE:
        return None
    return slices_outlook(question.plan.arch, question.trials, boot_s, question.world.slice_boot_s)
