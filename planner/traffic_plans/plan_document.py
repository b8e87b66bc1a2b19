"""A plan for a trace as the JSON document of `sgtune plan --traffic`: a plan's, and what the trace says."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from planner.fleets.cost import Prices
from planner.fleets.plan_document import plan_document
from planner.traffic_plans.served import ServedTrace
from planner.traffic_plans.sizing import TrafficPlan


def traffic_plan_document(planned: TrafficPlan, prices: Prices | None = None) -> dict[str, Any]:
    """Return the document; `answer` speaks of all servers, `traffic` of the trace."""
    document = plan_document(planned.plan, prices)
    trace_question, served = planned.asked, planned.served
    document["question"] |= {
        "traffic": trace_question.name,
        "rate_scale": trace_question.rate_scale,
        "slo": [str(s) for s in trace_question.slos],
    }
    if document["answer"] is not None and served is not None:
        names = ("servers", "routing", "hit_rate", "goodput_rps", "e2e_ms")
        document["answer"] |= {name: getattr(served, name) for name in names}
    document["traffic"] = {
        "requests": len(trace_question.trace),
        "requests_in_all": trace_question.requests_in_all,
        "window_s": list(trace_question.window_s),
        "minutes": [asdict(minute) for minute in served.minutes] if served is not None else [],
        "without_cache": None
        if planned.without_cache is None
        else {**served_document(planned.without_cache), "fewest_servers": planned.servers_without_cache},
        "routing": {str(way): served_document(served_way) for way, served_way in planned.routings.items()},
    }
    return document


def served_document(served: ServedTrace) -> dict[str, Any]:
    """Return what servers do under a trace, without its minutes."""
    return {
        "servers": served.servers,
        "ttft_ms": served.ttft_ms,
        "tpot_ms": served.tpot_ms,
        "e2e_ms": served.e2e_ms,
        "output_tok_s": served.output_tok_s,
        "goodput_rps": served.goodput_rps,
        "hit_rate": served.hit_rate,
    }
