"""Plan: the answer in a sentence, then why, then what if."""

import math

import streamlit as st

from dashboard.charts import fleet_charts, tables
from dashboard.charts import plan_charts as charts
from dashboard.readers.commands import plan_answer
from dashboard.readers.explanations import explained
from dashboard.readers.fleets import clients_of, is_fleet, kind_of, running_in_all, stages
from dashboard.readers.plan_inputs import PlanInputs, WhatIf, what_if
from dashboard.widgets import BOUND, command, machines_of_runs, stop, table, tile
from hwprobe.catalogue import hardware_names
from hwprobe.errors import InputError
from hwprobe.plain_text import as_markdown
from models.config import Speculative
from models.serving.estimate import DEFAULT_ACCEPTANCE, Prediction
from models.workload import Metric, Slo, Statistic
from planner.fleets.cost import token_cost
from planner.fleets.deployment import Role
from planner.fleets.plan_document import deployment_of
from planner.launch import launch_spec
from planner.plans.candidates import Candidate
from planner.plans.document import latency_text
from planner.plans.make import Plan
from planner.plans.space import CHUNKS, GRAPH_SIZES, MTP_STEPS
from planner.sglang.flags import listed_releases

# Columns of the ranked table: together no wider than the page beside its sidebar at 1,000 pixels.
RANKED_PX = {
    "rank": 45, "configuration": 170, "tok/s": 65, "per user": 65, "TPOT ms": 65, "TTFT ms": 65, "p99": 60,
}  # fmt: skip
CLIENTS, RATE, USERS = "clients", "requests/s", "users"
LIMITS = ("tpot:mean<50ms", "tpot:p99<100ms", "ttft:mean<2s", "ttft:p99<10s", "e2e:p95<60s")


def ask() -> PlanInputs:
    """Read the question from the sidebar."""
    own = machines_of_runs()
    releases = list(listed_releases())[::-1]
    with st.sidebar:
        hardware = st.selectbox(
            "Hardware", [*hardware_names(), *own], key="hw", bind=BOUND, accept_new_options=True,
            help="A catalogue name (h200x8, 2xh100x8), or the path of a hardware.json that sgtune probe wrote",
        )  # fmt: skip
        left_column, right_column = st.columns(2)
        isl = left_column.number_input("Input tokens", 1, 1_000_000, 1000, step=100, key="isl", bind=BOUND)
        osl = right_column.number_input("Output tokens", 1, 1_000_000, 1000, step=100, key="osl", bind=BOUND)
        ratio = st.slider(
            "Shortest length over longest", 0.0, 1.0, 1.0, step=0.05, key="ratio", bind=BOUND,
            help="Lengths are uniform from this share of the length to the length; 1: all equal",
        )  # fmt: skip
        kind = st.segmented_control(
            "Load", [CLIENTS, RATE, USERS], default=CLIENTS, required=True, key="ask", bind=BOUND
        )
        rate, users, speed, clients = None, None, None, None
        if kind == RATE:
            rate = st.number_input("Requests per second", 0.01, 1e5, 5.0, key="rate", bind=BOUND)
        elif kind == USERS:
            users = st.number_input("Users", 1, 1_000_000, 1024, key="users", bind=BOUND)
            speed = st.number_input("tok/s each", 0.1, 1000.0, 20.0, key="speed", bind=BOUND)
        else:
            clients = st.number_input("Clients", 1, 1_000_000, 1024, step=64, key="clients", bind=BOUND)
        slo = st.multiselect(
            "Limits", LIMITS, key="slo", bind=BOUND, accept_new_options=True, placeholder="none",
            help="metric:statistic<limit; metrics ttft, tpot, e2e; statistics mean, p50, p90, p95, p99",
        )  # fmt: skip
        version = st.selectbox("SGLang", releases, key="sglang", bind=BOUND, accept_new_options=True)
        mtp = st.toggle("Consider MTP", value=True, key="mtp", bind=BOUND)
        acceptance = DEFAULT_ACCEPTANCE
        if mtp:
            acceptance = st.slider(
                "MTP acceptance", 0.0, 0.95, DEFAULT_ACCEPTANCE, step=0.05, key="acceptance", bind=BOUND,
                help="Probability that a drafted token is accepted",
            )  # fmt: skip
        price = st.number_input(
            "Cost of a GPU hour", 0.0, 1e4, 0.0, step=0.5, key="price", bind=BOUND,
            help="In any currency; 0: what tokens cost is not shown",
        )  # fmt: skip
    return PlanInputs(
        cost_per_gpu_hour=price or None,
        hardware=own.get(hardware or "", hardware or ""), sglang_version=version or "", isl=isl, osl=osl,
        range_ratio=ratio, slo=tuple(slo),
        mtp=mtp, mtp_acceptance=acceptance, concurrency=clients, request_rate=rate, users=users, min_user_tok_s=speed,
    )  # fmt: skip


def show_answer(plan: Plan, best: Candidate) -> None:
    """Show the figures behind the sentence."""
    prediction = best.prediction
    low, high = (end * best.servers * best.load_share for end in prediction.band["output_tok_s"])
    with st.grid(5, min_column_width=150):
        tile("tok/s (90 % band)", f"{best.output_tok_s:,.0f}", f"{low:,.0f} to {high:,.0f}")
        waiting = "no steady value" if prediction.queue_grows else f"{prediction.user_tok_s_with_wait:.1f}"
        tile("Per user, tok/s", f"{prediction.user_tok_s:.1f}", f"with the wait {waiting}")
        tile("TPOT mean, ms", f"{prediction.tpot_ms['mean']:.1f}", f"p99 {prediction.tpot_ms['p99']:.1f}")
        tile("TTFT mean, ms", latency_text(prediction.ttft_ms["mean"]), ttft_against_limits(plan, best))
        if (prices := inputs.prices()) is not None:
            cost = token_cost(best, plan.load, prices)
            tile("Per million output", f"{cost.output_per_million:,.2f}", f"{cost.input_per_million:,.2f} input")
        tile("KV headroom, GiB", f"{best.ledger.headroom_gib:,.0f}", f"{best.ledger.kv_tokens:,} tokens")
        tile("Requests at once", f"{running_in_all(best):,.0f}", f"of {clients_of(plan):,}")


def ttft_against_limits(plan: Plan, best: Candidate) -> str:
    """Say the TTFT beside the limits that were asked for, the p99 where none was."""
    prediction = best.prediction
    limits = [slo for slo in plan.question.slos if slo.metric is Metric.TTFT]
    if prediction.queue_grows:
        return "the queue grows without end"
    if not limits:
        return f"p99 {prediction.ttft_ms['p99']:,.0f}, no limit"
    return "; ".join(_against(slo, prediction) for slo in limits)


def _against(slo: Slo, prediction: Prediction) -> str:
    """Say a limit, and before it the figure where it is not the mean, which stands above."""
    figure = "" if slo.statistic is Statistic.MEAN else f"{slo.statistic} {slo.value_ms(prediction):,.0f}, "
    return f"{figure}limit {slo.limit_ms:,.0f}"


def show_fleet(plan: Plan, row: int) -> None:
    """Draw a deployment's place among copies, large servers and prefill/decode; its pools, and where requests wait."""
    candidates = plan.found.candidates
    chosen = candidates[row]
    st.markdown("**Copies, one large server, prefill and decode apart**")
    st.plotly_chart(
        fleet_charts.deployments(inputs.fleet_curves(), row, plan.question.all_slos), key="deployments",
        alt="Output tokens per second and GPU against tokens per second and user, by kind of deployment",
    )  # fmt: skip
    st.caption(
        f"Large markers: {clients_of(plan):,} requests in flight over all servers; small ones: a sixteenth, a quarter "
        "and half of them. Dotted: what no deployment here beats in both."
    )
    best = {kind_of(candidate): candidate for candidate in reversed(candidates)}
    compared = {candidate.name: stages(plan, candidate) for candidate in (chosen, *best.values())}
    st.markdown(f"**Its pools**, {as_markdown(chosen.name)}")
    st.plotly_chart(
        fleet_charts.pools(deployment_of(chosen), compared[chosen.name]), key="pools",
        alt="Router and pools of servers, with the seconds a request waits before each",
    )  # fmt: skip
    st.markdown("**Where requests wait**, beside the best of the other kinds")
    st.plotly_chart(
        fleet_charts.waits(compared), key="waits", alt="Seconds of a request's life by stage, by deployment"
    )


def show_memory(candidate: Candidate) -> None:
    """Draw where one GPU's memory goes, of a fleet that of a server that decodes."""
    of_role = ", a decode server" if candidate.prefill is not None else ""
    st.markdown(f"**Memory of one GPU**, {candidate.config.label}{of_role}")
    st.plotly_chart(charts.memory_waterfall(candidate.ledger), key="memory", alt="GiB of one GPU by owner")
    weights = candidate.ledger.weights_gib
    st.caption(f"Weights {weights:.1f} of {candidate.ledger.card_gib:.1f} GiB; the dotted line is the card.")


def show_candidate(plan: Plan, row: int) -> None:
    """Draw a candidate's place among the others."""
    st.markdown("**Throughput against interactivity**")
    st.plotly_chart(
        charts.interactivity(plan, inputs.curves(), row), key="interactivity",
        alt="Output tokens per second and GPU against tokens per second and user, by configuration",
    )  # fmt: skip
    st.caption(
        f"Markers: {plan.concurrency:,} clients; lines: a sixteenth of them and more, each replayed. "
        "Shapes: MTP depth 0 circle, 1 diamond, 2 square, 3 triangle; hollow: misses a limit."
    )


@st.fragment
def show_what_if(plan: Plan, row: int) -> None:
    """Sliders on one configuration; only this part of the page runs again."""
    candidate = plan.found.candidates[row]
    config, mark = candidate.config, slider_mark(plan, candidate)
    knobs, figures = st.columns([2, 3], gap="large")
    with knobs:
        fraction = st.slider(
            "mem_fraction_static", 0.50, 0.98, config.mem_fraction_static or 0.9, step=0.01, key=f"fraction {mark}"
        )
        chunk = st.select_slider(
            "chunked_prefill_size", sorted({*CHUNKS, config.chunked_prefill_size or CHUNKS[0]}),
            config.chunked_prefill_size, key=f"chunk {mark}",
        )  # fmt: skip
        graph = st.select_slider(
            "cuda_graph_max_bs_decode", sorted({*GRAPH_SIZES, config.cuda_graph_max_bs_decode or 8}),
            config.cuda_graph_max_bs_decode, key=f"graph {mark}",
        )  # fmt: skip
        running = st.select_slider(
            "max_running_requests", sorted({*(2**n for n in range(13)), config.max_running_requests or 1}),
            config.max_running_requests, key=f"running {mark}",
        )  # fmt: skip
        clients = st.select_slider(
            "clients", sorted({*(2**n for n in range(13)), plan.concurrency}), plan.concurrency, key=f"clients {mark}"
        )
        depth = st.select_slider(
            "MTP depth", MTP_STEPS, config.speculative.num_steps if config.speculative else 0, key=f"mtp {mark}"
        )
    changed = what_if(plan, config, clients, {
        "mem_fraction_static": fraction, "chunked_prefill_size": chunk, "cuda_graph_max_bs_decode": graph,
        "max_running_requests": running, "speculative": Speculative.chain(depth) if depth else None,
    })  # fmt: skip
    with figures:
        show_changed(candidate, changed)


def slider_mark(plan: Plan, candidate: Candidate) -> str:
    """Return what tells one configuration's sliders from another's, so that each starts where it was planned."""
    config = candidate.config
    knobs = (config.mem_fraction_static, config.max_running_requests, config.chunked_prefill_size)
    return f"{plan.question.hardware.name} {plan.concurrency} {config.label} {knobs}"


def show_changed(candidate: Candidate, changed: WhatIf) -> None:
    """Show the figures of a changed configuration with what the change did to them."""
    before, after = candidate.prediction, changed.prediction
    if changed.objection:
        st.warning(as_markdown(changed.objection))
    if after is None:
        return
    with st.grid(3, min_column_width=120):
        for label, new, old, form in (
            ("Output, tok/s", after.output_tok_s, before.output_tok_s, "{:,.0f}"),
            ("Per user, tok/s", after.user_tok_s, before.user_tok_s, "{:,.1f}"),
            ("TTFT mean, ms", after.ttft_ms["mean"], before.ttft_ms["mean"], "{:,.0f}"),
            ("Requests at once", after.running_requests, before.running_requests, "{:,.0f}"),
            ("KV headroom, GiB", changed.ledger.headroom_gib, candidate.ledger.headroom_gib, "{:,.0f}"),
            ("Left free, GiB/GPU", changed.ledger.free_gib, candidate.ledger.free_gib, "{:,.1f}"),
        ):
            if not (math.isfinite(new) and math.isfinite(old)):
                tile(label, latency_text(new), f"{latency_text(old)} as planned")
                continue
            if form.format(new) == form.format(old):
                tile(label, form.format(new), "no change")
                continue
            delta = f"{new / old - 1:+.1%}" if old > 0 else f"{new - old:+.1f}"
            st.metric(label, form.format(new), delta, delta_color="off", border=True)
    st.plotly_chart(
        charts.step_costs({"as planned": before.breakdown_ms, "what if": after.breakdown_ms}), key="step",
        alt="Milliseconds of a decode step by cost, before and after",
    )  # fmt: skip
    st.caption(
        as_markdown(" ".join(changed.misses)) or f"Limited by {after.limiting}; a step is {after.step_ms:.1f} ms."
    )


inputs = ask()
try:
    plan = inputs.plan()
except InputError as error:
    stop(f"{error}")
st.subheader(as_markdown(plan_answer(plan)))
if plan.best is not None:
    show_answer(plan, plan.best)
    labels = [f"{n}. {c.name}" for n, c in enumerate(plan.found.candidates, start=1)]
    if st.session_state.get("candidate", labels[0]) not in labels:
        st.session_state["candidate"] = labels[0]
    picked = st.selectbox("Configuration shown below", labels, key="candidate", bind=BOUND)
    row = labels.index(picked) if picked in labels else 0
    if is_fleet(plan):
        show_fleet(plan, row)
    else:
        show_candidate(plan, row)
    show_memory(plan.found.candidates[row])
    st.markdown("**Configurations, best first** (* on the Pareto front)")
    table(tables.ranked(plan), "ranked", RANKED_PX)
    with st.expander("Their settings, and why the others rank lower"):
        table(tables.ranked_settings(plan), "settings")
    if plan.found.candidates[row].prefill is None:
        st.markdown(f"**What if** {plan.found.candidates[row].config.label} ran with")
        show_what_if(plan, row)
    with st.expander("How each number came about"):
        st.table(tables.numbers(explained(plan, plan.found.candidates[row])), border="horizontal", hide_index=True)
        st.caption(
            "Of the machine: " + ", ".join(f"{name} {basis}" for name, basis in plan.context.machine.basis.items())
        )
    with st.expander("The launch command"):
        question = plan.question
        for pool in deployment_of(plan.found.candidates[row]).pools:
            spec = launch_spec(pool.config, question.version, model_path=question.served_path).with_words(
                pool.own_flags
            )
            if pool.servers > 1 or pool.role is not Role.MIXED:
                st.caption(f"{pool.servers} {pool.role}")
            st.code(spec.shell_line(), language="bash", wrap_lines=True)
        command(f"{inputs.command()} --json | sgtune export --plan - --candidate {row + 1} --bundle launch/",
                "As launch files")  # fmt: skip
elif (nearest := inputs.nearest()) is not None:
    st.markdown(f"**Memory of one GPU**, {nearest.config.label}: the layout that lacks least")
    st.plotly_chart(charts.memory_waterfall(nearest.ledger), key="memory", alt="GiB of one GPU by owner")
    st.caption(
        as_markdown(
            f"{nearest.objection}. One request's KV cache and 1 GiB free are counted; what stands beyond the dotted "
            "line, the card, is missing."
        )
    )
st.download_button(
    "Download this plan (JSON)", inputs.document(), file_name="plan.json", mime="application/json",
    icon=":material/download:", help="What sgtune plan --json prints; sgtune export --plan plan.json makes files",
)  # fmt: skip
counts = plan.found.rejected_by_reason()
reasons = ", ".join(f"{kind}: {count}" for kind, count in counts.items()) or "nothing"
with st.expander(
    f"Rejected and why ({reasons}; {plan.found.evaluated:,} configurations evaluated)", expanded=plan.best is None
):
    table(tables.rejected(plan.found.rejected), "rejected")
if plan.published is not None:
    comparison = plan.published
    st.caption(
        f":material/fact_check: Published: {comparison.published:,.2f} {comparison.quantity}, "
        f"predicted {comparison.predicted:,.2f} ("
        f"{comparison.residual_percent:+.1f} % over predicted): {comparison.source}; {comparison.note}"
    )
for warning in plan.warnings:
    st.caption(f":material/info: {as_markdown(warning)}")
command(inputs.command())
