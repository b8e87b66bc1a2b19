"""What a run over deployments would do: the copies, what the model puts ahead, the roles measured alone."""

from __future__ import annotations

from functools import partial
from typing import Any

from packaging.version import Version

from planner.fleets.plan_document import deployment_document
from planner.fleets.worth_launching import best_copies, worth_launching
from tuner.choices import SIMULATED_ENGINES
from tuner.fleet_run.loop import MOST_WHOLE, predicted_figures
from tuner.fleet_run.proposals import COPIES, Foreseen, foresee
from tuner.fleet_run.setup import checked, launchable
from tuner.run.question import TuneQuestion

SHOWN = 10


def fleet_dry_run(question: TuneQuestion) -> dict[str, Any]:
    """Return the document of `sgtune tune --servers ... --dry-run --json`. Nothing is written."""
    checked(question)
    plan = question.plan
    workload = plan.workload(plan.concurrency or 1)
    listed = [one for one in worth_launching(plan, str(question.servers)) if launchable(question.engine, one)]
    foreseen = foresee(listed, plan, workload)
    copies = best_copies(plan, partial(launchable, question.engine))
    first = [] if copies is None else [(COPIES, foresee([copies], plan, workload)[0])]
    first += [("", one) for one in foreseen if one.deployment != copies][:SHOWN]
    apart = next((one for one in foreseen if one.apart), None)
    return {
        "engine": str(question.engine),
        "simulated": question.engine in SIMULATED_ENGINES,
        "servers": str(question.servers),
        "launches": min(MOST_WHOLE, question.trials),
        "candidates": len(foreseen),
        "alone": [] if apart is None else [pool.name for pool in apart.deployment.pools],
        "first": [_shown(source, one, plan.version) for source, one in first],
    }


def _shown(source: str, one: Foreseen, version: Version) -> dict[str, Any]:
    return {
        "source": source,
        "label": one.deployment.name,
        "deployment": deployment_document(one.deployment, version),
        "predicted": predicted_figures(one.candidate),
        "limited_by": one.candidate.prediction.limiting,
        "misses": list(one.candidate.misses),
    }
