"""How each number of a plan came about: the equation, its inputs as the models have them, and the result."""

from __future__ import annotations

from dataclasses import dataclass

from models.layout import table_of
from models.serving.closed_form import MEAN_OUTPUT_HELD
from models.serving.estimate import predict_many
from planner.plans.candidates import Candidate
from planner.plans.document import latency_words
from planner.plans.make import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Equation:
    """One number: what it is, the equation in words, and the same with its inputs and result."""

    quantity: str
    equation: str
    numbers: str


def explained(plan: Plan, candidate: Candidate) -> list[Equation]:
    """Return the numbers of a candidate in the order in which they follow from each other."""
    return [*_memory(plan, candidate), *_speed(plan, candidate)]


def _memory(plan: Plan, candidate: Candidate) -> list[Equation]:
    config = candidate.config
    filled = plan.context.memory(table_of([config]))
    card, context, weights, pool, cell, free = (
        float(values[0])
        for values in (filled.card, filled.context, filled.weights.total, filled.kv_pool, filled.kv_cell, filled.free)
    )
    ranks, fraction = config.attn_dp_size, config.mem_fraction_static or 0.0
    return [
        Equation(
            quantity="KV pool of a GPU",
            equation="(card - context and NCCL) x mem_fraction_static - weights",
            numbers=f"({card:.1f} - {context:.1f}) x {fraction:.3f} - {weights:.1f} = {pool:.1f} GiB",
        ),
        Equation(
            quantity="KV headroom",
            equation="KV pool x GPUs",
            numbers=f"{pool:.1f} x {config.gpu_count} = {candidate.ledger.headroom_gib:,.0f} GiB",
        ),
        Equation(
            quantity="KV tokens",
            equation="(KV pool / GiB a token takes on a rank) x attention-DP ranks",
            numbers=f"{pool:.1f} GiB / {cell * 2**20:.1f} KiB x {ranks} = {candidate.ledger.kv_tokens:,}",
        ),
        Equation(
            quantity="left free on a GPU",
            equation="(card - context) x (1 - mem_fraction_static) - request table - CUDA graphs - activations",
            numbers=f"({card:.1f} - {context:.1f}) x {1 - fraction:.3f} - {float(filled.request_table[0]):.1f} "
            f"- {float(filled.graphs[0]):.1f} - {float(filled.activations[0]):.1f} = {free:.1f} GiB",
        ),
    ]


def _speed(plan: Plan, candidate: Candidate) -> list[Equation]:
    config, figures, question = candidate.config, candidate.prediction, plan.question
    table = table_of([config])
    workload = question.workload(plan.concurrency)
    steady = predict_many(plan.context, table, workload, plan.context.memory(table))
    kv_limit, stall = float(steady.kv_limit[0]), figures.stall_ms
    depth = config.speculative.num_steps if config.speculative else 0
    low, high = figures.band["output_tok_s"]
    token_ms = figures.step_ms / figures.accepted_tokens
    return [
        Equation(
            quantity="requests at once",
            equation=f"least of clients, max_running_requests, KV tokens / (input + {MEAN_OUTPUT_HELD} x output)",
            numbers=f"min({plan.concurrency:,}, {config.max_running_requests or 0:,}, {kv_limit:,.0f}) = "
            f"{figures.running_requests:,.0f}",
        ),
        Equation(
            quantity="decode step",
            equation="sum of its costs (the chart below)",
            numbers=f"{' + '.join(f'{ms:.1f}' for ms in figures.breakdown_ms.values() if ms >= 0.05)} = "
            f"{figures.step_ms:.1f} ms",
        ),
        Equation(
            quantity="tokens of a step",
            equation="1 + a + a^2 + ... over the MTP depth, a: acceptance",
            numbers=f"a = {plan.context.acceptance:g}, depth {depth}: {figures.accepted_tokens:.2f}",
        ),
        Equation(
            quantity="TPOT (closed form)",
            equation="decode step / tokens of a step + prefill passes of others per output token",
            numbers=f"{figures.step_ms:.1f} / {figures.accepted_tokens:.2f} + {stall:.1f} = {token_ms + stall:.1f} ms",
        ),
        Equation(
            quantity="TPOT, TTFT, tok/s as stated",
            equation="the scheduler replayed event by event with these step times",
            numbers=f"TPOT {figures.tpot_ms['mean']:.1f} ms, TTFT {latency_words(figures.ttft_ms['mean'])}, "
            f"{figures.output_tok_s:,.0f} tok/s",
        ),
        Equation(
            quantity="90 % band",
            equation=f"uncertainty of the engine profile {plan.context.engine.name} ({plan.context.engine.points} "
            "points) and of what it was not fitted to",
            numbers=f"{low:,.0f} to {high:,.0f} tok/s",
        ),
    ]
