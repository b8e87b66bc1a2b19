"""Settings that cost this traffic something: each is tried otherwise, and said only where it shows and pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from models.config import ServerConfig, Speculative
from models.workload import Lengths
from planner.check.judge import judge, modelled
from planner.plans.space import graph_size
from tuner.advise.expected import Model
from tuner.advise.finding import Finding, FindingKind, Gain
from tuner.scrape.observed import Observed

# A queue is one from so many requests on, and from this share of what runs.
LEAST_QUEUE, QUEUE_SHARE = 1.0, 0.05
# Decode passes in CUDA graphs: below this share some batches outgrow them.
GRAPHED = 0.95
# Of drafts that are kept as usual the model must be sure: what a verify pass costs is known to a tenth.
USUAL_ACCEPTANCE, LEAST_AGAINST_USUAL = 0.5, 0.2
# Chunks a rank is well served with, whatever the machine.
USUAL_CHUNKS = (2048, 4096, 8192, 16384)
# What prompts are taken to share where the cache is off and nothing can tell: the gain is said to hang on it.
ASSUMED_SHARED = 0.5
NO_ROOM = 0.97  # of max_running_requests in use: the cap is what holds requests back


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedSetting:
    """One change of the launch and what it is predicted to give."""

    change: ServerConfig
    gain: Gain


def best_of(model: Model, changes: Iterable[ServerConfig]) -> TriedSetting | None:
    """Return the change that gains most, None where none is worth it."""
    tried = [
        TriedSetting(change=change, gain=Gain.of(model.base, after))
        for change in changes
        if change != model.server.typed and (after := model.change(change)) is not None
    ]
    worth = [each for each in tried if each.gain.worth_it]
    return max(worth, key=lambda each: (round(each.gain.rate, 2), each.gain.ttft), default=None)


def finding(model: Model, tried: TriedSetting, kind: FindingKind, evidence: str) -> Finding:
    """Put a change into words."""
    return Finding(
        kind=kind,
        evidence=evidence,
        change=model.flags(tried.change),
        gain_percent=tried.gain.percent,
        ttft_percent=round(100.0 * tried.gain.ttft, 1),
        before=model.line(model.server.typed),
        after=model.line(tried.change),
    )


def queued(observed: Observed) -> bool:
    """Whether requests wait for a place."""
    return (observed.waiting or 0.0) >= max(LEAST_QUEUE, QUEUE_SHARE * (observed.running or 0.0))


def graphs(model: Model, observed: Observed) -> Finding | None:
    """Decode batches outgrow the captured CUDA graphs, and the CPU launches every kernel."""
    config, typed = model.server.config, model.server.typed
    ranks = max(1, config.attn_dp_size)
    largest = max([*observed.running_by_rank.values(), (observed.running or 0.0) / ranks])
    captured = 0 if config.disable_cuda_graph else config.cuda_graph_max_bs_decode or 0
    if observed.graph_share is not None and observed.graph_share >= GRAPHED:
        return None
    if observed.graph_share is None and largest <= captured:
        return None
    most = math.ceil(min(model.traffic.in_flight, config.max_running_requests or 1) / ranks)
    bare = replace(typed.with_flags(cuda_graph_bs_decode=None, cuda_graph_bs=None, disable_decode_cuda_graph=None),
                   disable_cuda_graph=False)  # fmt: skip
    sizes = {graph_size(most), graph_size(math.ceil(max(1.0, largest)))}
    tried = best_of(model, [replace(bare, cuda_graph_max_bs_decode=size) for size in sizes if size > captured])
    if tried is None:
        return None
    share = "" if observed.graph_share is None else f"; {1.0 - observed.graph_share:.0%} of decode passes ran without"
    what = f"CUDA graphs end at {captured} requests a rank" if captured else "no CUDA graphs are captured"
    return finding(model, tried, FindingKind.GRAPHS_TOO_SMALL, f"{what}, {largest:.0f} run at once{share}")


def chunk(model: Model, observed: Observed) -> Finding | None:
    """A chunk keeps more memory from the KV cache, or holds up more, than it is worth."""
    config, typed = model.server.config, model.server.typed
    ranks, now = max(1, config.attn_dp_size), config.chunked_prefill_size or 0
    smaller = [size * ranks for size in USUAL_CHUNKS if size * ranks <= now // 2]
    changes = [replace(typed, chunked_prefill_size=size) for size in smaller]
    tried = best_of(model, changes)
    if tried is None or not (queued(observed) or observed.retractions or tried.gain.ttft > 0):
        return None
    before, after = (model.server.memory(c).kv_tokens[0] for c in (config, _resolved(model, tried.change)))
    text = f"a prefill pass may hold {now // ranks:,} tokens a rank"
    if after > 1.02 * before:
        text += f", whose activations keep {after - before:,.0f} KV tokens from requests ({before:,.0f} are left)"
    if queued(observed):
        text += f"; {observed.waiting:.0f} requests wait"
    return finding(model, tried, FindingKind.CHUNK_TOO_LARGE, text)


def mtp(model: Model, observed: Observed) -> Finding | None:
    """What MTP drafts is verified and thrown away: the tokens of a step do not pay for it."""
    spec = model.server.config.speculative
    if spec is None or not observed.accept_length:
        return None
    changes = [without_mtp(model.server.typed)]
    if spec.eagle_topk == 1:
        plain = without_mtp(model.server.typed)
        changes += [replace(plain, speculative=Speculative.chain(steps)) for steps in range(1, spec.num_steps)]
    tried = best_of(model, changes)
    accepted_share = (observed.accept_length - 1.0) / max(1, spec.num_steps)
    if tried is None or (accepted_share >= USUAL_ACCEPTANCE and tried.gain.rate < LEAST_AGAINST_USUAL):
        return None
    most = spec.num_steps + 1
    text = f"a decode step yields {observed.accept_length:.2f} of at most {most} tokens a request"
    return finding(model, tried, FindingKind.MTP_DOES_NOT_PAY, text)


def without_mtp(typed: ServerConfig) -> ServerConfig:
    """Return the launch without speculation."""
    flags = {name: None for name, _ in typed.extra if name.startswith("speculative_")}
    return replace(typed, speculative=None).with_flags(**flags)


def max_running(model: Model, observed: Observed) -> Finding | None:
    """Requests wait though the KV cache has room: the cap on running requests holds them back."""
    config, typed = model.server.config, model.server.typed
    cap, ranks = config.max_running_requests or 0, max(1, config.attn_dp_size)
    if not queued(observed) or (observed.running or 0.0) < NO_ROOM * cap - ranks:
        return None
    room = int(model.server.kv_tokens / (model.traffic.isl.mean + model.traffic.osl.mean))
    needed = _rounded(min(model.traffic.in_flight, max(room, 1)), ranks)
    changes = []
    for size in {needed, _rounded(min(room, 2 * cap), ranks)}:
        if size > cap:
            more = replace(typed, max_running_requests=size)
            changes += [more, replace(more, cuda_graph_max_bs_decode=graph_size(math.ceil(size / ranks)))]
    tried = best_of(model, changes)
    if tried is None:
        return None
    usage = "" if observed.kv_usage is None else f", while {observed.kv_usage:.0%} of the KV cache is used"
    text = f"{observed.running:.0f} requests run of at most {cap}, {observed.waiting:.0f} wait{usage}"
    return finding(model, tried, FindingKind.MAX_RUNNING_TOO_LOW, text)


def _rounded(requests: int, ranks: int) -> int:
    """Return a number of requests as one would type it: whole eights a rank."""
    step = 8 * ranks
    return max(step, math.ceil(requests / step) * step)


def radix(model: Model, observed: Observed) -> Finding | None:
    """The prefix cache is off. What prompts share cannot be seen then: the gain is that of an assumption."""
    if not model.server.config.disable_radix_cache:
        return None
    change = replace(model.server.typed, disable_radix_cache=False)
    fresh = replace(model.traffic, isl=_shorter(model))
    after = model.change(change, fresh)
    if after is None:
        return None
    gain = Gain.of(model.base, after)
    if not gain.worth_it:
        return None
    text = (
        f"--disable-radix-cache: all {model.traffic.whole_isl:,.0f} tokens of every prompt are computed; what prompts "
        "share cannot be seen while it is off"
    )
    assumed = f"half of each prompt is shared ({ASSUMED_SHARED:.0%}); nothing is lost where it is not"
    return replace(
        finding(model, TriedSetting(change=change, gain=gain), FindingKind.RADIX_CACHE_OFF, text), assumed=assumed
    )


def _shorter(model: Model) -> Lengths:
    isl = model.traffic.isl
    return replace(isl, nominal=max(1, round(isl.nominal * (1.0 - ASSUMED_SHARED))))


def recv_interval(model: Model, observed: Observed) -> Finding | None:
    """New requests are looked for only every so many decode steps."""
    now = model.server.config.scheduler_recv_interval or 1
    if now <= 1:
        return None
    tried = best_of(model, [replace(model.server.typed, scheduler_recv_interval=1)])
    if tried is None:
        return None
    wait_ms = 0.5 * (now - 1) * model.base.step_ms
    text = (
        f"--scheduler-recv-interval {now}: a request waits {wait_ms:.0f} ms on average until it is looked at, "
        f"{observed.running or 0.0:.0f} run"
    )
    return finding(model, tried, FindingKind.RECV_INTERVAL_TOO_LONG, text)


def kv_full(model: Model, observed: Observed) -> Finding | None:
    """The KV cache is full: requests wait for room, or are sent back and computed again."""
    config = model.server.config
    capped = (observed.running or 0.0) >= NO_ROOM * (config.max_running_requests or 1) - max(1, config.attn_dp_size)
    if not observed.retractions and (not queued(observed) or capped):
        return None
    tried = best_of(model, more_memory(model)) or best_of(model, other_layouts(model))
    if tried is None:
        return None
    usage = (
        ""
        if observed.kv_usage is None
        else f"{observed.kv_usage:.0%} of {model.server.kv_tokens:,.0f} KV tokens are used"
    )
    sent_back = (
        f"{observed.retractions:.0f} requests were sent back to be computed again" if observed.retractions else ""
    )
    waits = f"{observed.waiting:.0f} wait" if queued(observed) else ""
    return finding(model, tried, FindingKind.KV_FULL, ", ".join(text for text in (usage, sent_back, waits) if text))


def more_memory(model: Model) -> Iterator[ServerConfig]:
    """Yield what gives the same layout more KV cache, or stops requests from being sent back."""
    typed, config = model.server.typed, model.server.config
    ranks = max(1, config.attn_dp_size)
    fraction = config.mem_fraction_static or 0.0
    larger = [round(fraction + 0.01 * step, 3) for step in range(1, 60) if fraction + 0.01 * step <= 0.97]
    yield from (replace(typed, mem_fraction_static=each) for each in larger[1::2])
    per_rank = math.ceil(model.traffic.in_flight / ranks)
    size = graph_size(per_rank)
    if size < (config.cuda_graph_max_bs_decode or 0):
        yield replace(typed, cuda_graph_max_bs_decode=size)
        yield from (replace(typed, cuda_graph_max_bs_decode=size, mem_fraction_static=each) for each in larger[3::4])
    conservative = config.schedule_conservativeness or 1.0
    yield from (replace(typed, schedule_conservativeness=value) for value in (1.0, 1.3) if value > conservative)


def other_layouts(model: Model) -> Iterator[ServerConfig]:
    """Yield layouts that hold more KV tokens on the same GPUs: attention DP keeps a cache on every rank."""
    typed = model.server.typed
    for degree in (2, 4, 8, 16):
        if degree > typed.attn_dp_size and typed.tp_size % degree == 0:
            chunk_now = typed.chunked_prefill_size
            scaled = None if chunk_now is None else chunk_now * degree // max(1, typed.attn_dp_size)
            yield replace(typed, attn_dp_size=degree, chunked_prefill_size=scaled)


def _resolved(model: Model, change: ServerConfig) -> ServerConfig:
    context = model.context
    return modelled(judge(change, context.arch, context.machine, context.version).resolved.config)


FINDERS: tuple[Callable[[Model, Observed], Finding | None], ...] = (
    graphs, chunk, mtp, max_running, radix, recv_interval, kv_full,
)  # fmt: skip
