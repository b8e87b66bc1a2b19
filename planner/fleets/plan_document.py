"""Plans as JSON documents: the contract of `sgtune plan --json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwprobe.profile import hardware_hash
from planner.fleets.cost import Prices, token_cost
from planner.fleets.deployment import Deployment, Pool, Role
from planner.plans.document import finite, ledger_document, prediction_document
from planner.plans.evidence import evidence_for
from planner.plans.space import as_launched

if TYPE_CHECKING:
    from packaging.version import Version

    from models.config import ServerConfig
    from models.serving.estimate import Context, InFlight
    from planner.plans.candidates import Candidate, Rejected
    from planner.plans.make import Plan
    from planner.plans.published import Comparison


def plan_document(plan: Plan, prices: Prices | None = None) -> dict[str, Any]:
    """Return the plan as the JSON document of `sgtune plan --json`; with `prices` tokens have a cost."""
    question = plan.question
    return {
        "question": {
            "hardware": question.hardware.name,
            "hardware_hash": hardware_hash(question.hardware),
            "model": question.arch.name,
            "model_path": question.served_path,
            "sglang_version": str(question.version),
            "isl": question.isl,
            "osl": question.osl,
            "range_ratio": question.range_ratio,
            "concurrency": question.concurrency,
            "request_rate": question.request_rate,
            "users": question.users,
            "min_user_tok_s": question.min_user_tok_s,
            "slo": [str(slo) for slo in question.slos],
        },
        "fits": plan.fits,
        "meets_target": plan.meets_target,
        "shortage_gib_per_gpu": plan.shortage_gib,
        "answer": _answer(plan, prices),
        "candidates": [_candidate(plan, candidate, prices) for candidate in plan.found.candidates],
        "rejected": [_rejected(item) for item in plan.found.rejected],
        "rejected_by_reason": plan.found.rejected_by_reason(),
        "checkpoints": [offer.as_dict() for offer in plan.offers],
        "pareto": plan.pareto(),
        "evaluated": plan.found.evaluated,
        "published": _published(plan.published),
        "profile": plan.context.engine.name,
        "basis": {name: str(basis) for name, basis in plan.context.machine.basis.items()},
        "warnings": list(plan.warnings),
    }


def _cost(plan: Plan, candidate: Candidate, prices: Prices | None) -> dict[str, Any]:
    return {} if prices is None else {"cost": token_cost(candidate, plan.load, prices).as_dict()}


def _answer(plan: Plan, prices: Prices | None) -> dict[str, Any] | None:
    best = plan.best
    if best is None:
        return {"nodes": plan.nodes, "text": plan.node_answer} if plan.node_answer else None
    prediction = best.prediction
    return {
        "nodes": plan.nodes,
        "replicas": plan.replicas,
        "concurrency_per_replica": plan.concurrency,
        "deployment": best.name,
        "servers": deployment_of(best).servers,
        "prefill_share": deployment_of(best).prefill_share,
        "running_requests": prediction.running_requests * best.servers * best.load_share,
        "output_tok_s": best.output_tok_s,
        "user_tok_s": prediction.user_tok_s,
        "user_tok_s_with_wait": prediction.user_tok_s_with_wait,
        "in_flight": _in_flight(prediction.in_flight),
        "queue_grows": prediction.queue_grows,
        "ttft_ms": finite(prediction.ttft_ms),
        "tpot_ms": prediction.tpot_ms,
        "headroom_gib": best.ledger.headroom_gib * best.servers,
        "kv_tokens": best.ledger.kv_tokens * best.servers,
        "misses": list(best.misses),
        "evidence": evidence_document(best.config, plan.context),
        **_cost(plan, best, prices),
    }


def _in_flight(flight: InFlight | None) -> dict[str, float | None] | None:
    if flight is None:
        return None
    return {"mean": finite(flight.mean), "p99": finite(flight.p99), "served_share": flight.served_share}


def _candidate(plan: Plan, candidate: Candidate, prices: Prices | None) -> dict[str, Any]:
    first = deployment_of(candidate).pools[0]
    return {
        "label": candidate.name,
        "config": as_launched(first.config, plan.context.version).as_dict(),
        "argv": first.argv(plan.context.version),
        "prediction": prediction_document(candidate.prediction),
        "ledger": ledger_document(candidate.ledger),
        "kv_tokens": candidate.ledger.kv_tokens,
        "misses": list(candidate.misses),
        "why": candidate.why,
        "evidence": evidence_document(candidate.config, plan.context),
        "output_tok_s": candidate.output_tok_s,
        "deployment": deployment_document(deployment_of(candidate), plan.context.version),
        **_cost(plan, candidate, prices),
    }


def deployment_of(candidate: Candidate) -> Deployment:
    """Return a candidate's servers as pools: one that serves both phases, or prefill and decode."""
    if candidate.prefill is None:
        return Deployment(pools=(Pool(role=Role.MIXED, servers=candidate.servers, config=candidate.config),))
    before = candidate.prefill
    prefill = Pool(role=Role.PREFILL, servers=before.servers, config=before.config, hardware=before.hardware)
    return Deployment(pools=(prefill, Pool(role=Role.DECODE, servers=candidate.servers, config=candidate.config)))


def deployment_document(deployment: Deployment, version: Version) -> dict[str, Any]:
    """Return a deployment as JSON-ready values; argv are SGLang's flags of one server of each pool."""
    return {
        "name": deployment.name,
        "pools": [
            {
                "role": str(pool.role),
                "servers": pool.servers,
                "gpus_per_server": pool.config.gpu_count,
                "config": as_launched(pool.config, version).as_dict(),
                "argv": pool.argv(version),
                **({} if pool.hardware is None else {"hardware": pool.hardware}),
            }
            for pool in deployment.pools
        ],
        "router": deployment.router_argv and {"argv": deployment.router_argv},
        "gpus": deployment.gpus,
    }


def evidence_document(config: ServerConfig, context: Context) -> dict[str, Any]:
    """Return the published records behind a configuration as JSON-ready values."""
    evidence = evidence_for(config, context.machine, context.arch)
    return {"records": evidence.records, "mape_percent": evidence.mape_percent, "where": evidence.where}


def _rejected(item: Rejected) -> dict[str, Any]:
    return {"label": item.config.label, "config": item.config.as_dict(), "reason": item.reason, "kind": item.kind}


def _published(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    return {
        "quantity": comparison.quantity,
        "published": comparison.published,
        "predicted": comparison.predicted,
        "residual_percent": comparison.residual_percent,
        "configuration": comparison.configuration,
        "source": comparison.source,
        "note": comparison.note,
    }
