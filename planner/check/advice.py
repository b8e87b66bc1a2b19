"""Advice: other settings of the same launch, each resolved, weighed and predicted again; only gains are shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from hwprobe.errors import InputError
from models.config import ServerConfig
from models.costs.memory import GOOD_FREE_GIB
from models.serving.estimate import Context, Prediction
from models.workload import missed
from planner.check.changes import Conditions, best_fraction, memory_changes, speed_changes
from planner.check.judge import Checked, Weighed, judge, predicted, weigh
from planner.check.shortlist import levers, rate_step, shortlist
from planner.plans.search import final_key
from planner.rules import ERRORS
from planner.sglang.dialects import to_flags

LEAST_GAIN = 0.03
MOST_ADVICE = 6
# Of these at most so many are about speed, so that memory has its place too; so many are replayed to choose them.
MOST_SPEED = 3
REPLAYED = 6
LEAST_FREED_GIB = 0.05
# What a second node adds on each node: its rank.
NODE_RANK = " --node-rank RANK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change of the launch: the flags to add, what it does, and KV tokens per rank before and after.

    `output_tok_s` is what the change gives, `gain_percent` over the line as it stands, `misses` the limits it misses;
    None where there is no prediction.
    """

    flags: str
    text: str
    kv_before: int
    kv_after: int
    makes_it_fit: bool
    nodes: int
    output_tok_s: float | None = None
    gain_percent: float | None = None
    misses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedLaunch:
    """A launch as typed or changed, judged and weighed; `flags` are those to add, `prediction` where it has one."""

    checked: Checked
    weighed: Weighed
    prediction: Prediction | None = None
    flags: str = ""

    @property
    def config(self) -> ServerConfig:
        return self.checked.resolved.config


def advise(checked: Checked, weighed: Weighed, prediction: Prediction | None, conditions: Conditions) -> list[Advice]:
    """Try alternatives of the typed launch and return those that gain: most tok/s under the limits first.

    What gains no speed but KV cache or room comes after, and where no speed is predicted, alone. An alternative that
    the release cannot express or that fails for another reason is left out, and more nodes are proposed only where
    nothing helps on those there are.
    """
    now = TriedLaunch(checked=checked, weighed=weighed, prediction=prediction)
    roomier = _tried(now, memory_changes(checked, weighed, conditions), conditions)
    helping = [launch for launch in roomier if _helps_memory(now, launch)]
    least_nodes = min((launch.config.nnodes for launch in helping), default=1)
    helping = [launch for launch in helping if launch.config.nnodes == least_nodes]
    helping.sort(key=lambda launch: (len(launch.flags.split(" --")), -launch.weighed.ledger.kv_tokens_per_rank))
    if prediction is None:  # no speed to gain on
        helping = [_with_prediction(launch, conditions) for launch in helping[:MOST_ADVICE]]
        helping.sort(key=lambda launch: _rank(launch, conditions))
        return [_advice(now, launch, conditions) for launch in helping]
    faster = _faster(now, conditions)
    faster_flags = {launch.flags for launch in faster}
    rest = [
        _with_prediction(launch, conditions) for launch in helping[:MOST_ADVICE] if launch.flags not in faster_flags
    ]
    harmless = [launch for launch in rest if _gain(now, launch, conditions) > -LEAST_GAIN]
    gaining = [launch for launch in harmless if _gain(now, launch, conditions) >= LEAST_GAIN]
    faster = sorted([*faster, *gaining], key=lambda launch: _rank(launch, conditions))
    roomier_only = [launch for launch in harmless if launch not in gaining]
    return [_advice(now, launch, conditions) for launch in [*faster, *roomier_only][:MOST_ADVICE]]


def _tried(now: TriedLaunch, changes: Iterable[ServerConfig], conditions: Conditions) -> Iterator[TriedLaunch]:
    """Yield what each change makes, and beside it what it makes with the best memory fraction, each flags once."""
    flags_tried: set[str] = set()
    for change in [now.checked.typed, *changes]:
        launch = _try(now, change, conditions)
        if launch is None:
            continue
        fraction = best_fraction(launch.weighed)
        moved = abs(fraction - (launch.config.mem_fraction_static or 0)) >= 0.01
        second = _try(now, replace(change, mem_fraction_static=fraction), conditions) if moved else None
        for tried in (launch, second):
            if tried is not None and tried.flags and tried.flags not in flags_tried and tried.checked.sound:
                flags_tried.add(tried.flags)
                yield tried


def _try(now: TriedLaunch, change: ServerConfig, conditions: Conditions) -> TriedLaunch | None:
    """Return the change judged and weighed; None where the release cannot write it or its layout makes no sense."""
    context = conditions.context
    flags = _flags(now.checked.typed, change, context)
    if flags is None:
        return None
    checked = judge(change, context.arch, context.machine, context.version, rules=ERRORS)
    weighed = weigh(checked, context, conditions.workload, conditions.free_before_load_gib)
    return None if weighed is None else TriedLaunch(checked=checked, weighed=weighed, flags=flags)


def _helps_memory(now: TriedLaunch, tried: TriedLaunch) -> bool:
    """Say whether the change makes the launch fit, or gains KV cache without running out of room."""
    before, after = now.weighed.ledger, tried.weighed.ledger
    if not tried.weighed.fits or tried.weighed.shortage_gib > 0:
        return False
    if _lacks_room(now):
        return True
    safe = after.free_gib >= min(GOOD_FREE_GIB - 0.01, before.free_gib)
    gains = after.kv_tokens >= before.kv_tokens * (1 + LEAST_GAIN) or after.free_gib >= before.free_gib + 2.0
    return safe and gains and after.kv_tokens >= before.kv_tokens


def _lacks_room(launch: TriedLaunch) -> bool:
    return not launch.weighed.fits or launch.weighed.shortage_gib > 0


def _faster(now: TriedLaunch, conditions: Conditions) -> list[TriedLaunch]:
    """Return what is worth adding for speed, the fastest first: each with all its levers needed for its gain."""
    changes = [now.checked.typed, *speed_changes(now.checked.typed, conditions)]
    short = shortlist(now.checked, now.weighed, changes, conditions)
    tried = [launch for launch in (_try(now, change, conditions) for change in short) if launch is not None]
    sound = [launch for launch in tried if launch.checked.sound and launch.weighed.fits and launch.flags]
    replayed = [_with_prediction(launch, conditions) for launch in sound[:REPLAYED]]
    gaining = [launch for launch in replayed if _gain(now, launch, conditions) >= LEAST_GAIN]
    gaining.sort(key=lambda launch: _rank(launch, conditions))
    return [launch for launch in gaining if not _idle_lever(now, launch, gaining, conditions)][:MOST_SPEED]


def _idle_lever(now: TriedLaunch, launch: TriedLaunch, others: Iterable[TriedLaunch], conditions: Conditions) -> bool:
    """Say whether fewer levers gain as much."""
    changed = levers(now.config, launch.config)
    return any(
        levers(now.config, other.config) < changed and _gain(launch, other, conditions) > -0.01 for other in others
    )


def _with_prediction(launch: TriedLaunch, conditions: Conditions) -> TriedLaunch:
    free_gib = conditions.free_before_load_gib
    prediction = predicted(launch.checked, launch.weighed, conditions.context, conditions.workload, free_gib)
    return replace(launch, prediction=prediction)


def _rank(launch: TriedLaunch, conditions: Conditions) -> tuple[float, float, int]:
    """Order by what is missed, then by tok/s in steps of 1 %, then by how many flags it takes."""
    if launch.prediction is None:
        return math.inf, 0.0, len(launch.flags.split(" --"))
    miss, _ = final_key(launch.prediction, conditions.workload, conditions.slos)
    return miss, rate_step(launch.prediction.output_tok_s), len(launch.flags.split(" --"))


def _gain(before: TriedLaunch, after: TriedLaunch, conditions: Conditions) -> float:
    """Return what is gained, as a share: of the miss where a limit is missed, else of tok/s; 0 where nothing says."""
    if before.prediction is None or after.prediction is None:
        return 0.0
    missed_before, _ = final_key(before.prediction, conditions.workload, conditions.slos)
    missed_after, _ = final_key(after.prediction, conditions.workload, conditions.slos)
    if missed_before > 0.0 or missed_after > 0.0:
        return missed_before - missed_after
    return after.prediction.output_tok_s / before.prediction.output_tok_s - 1.0


def _advice(now: TriedLaunch, launch: TriedLaunch, conditions: Conditions) -> Advice:
    before, after = now.weighed.ledger, launch.weighed.ledger
    fitting = _lacks_room(now)
    kv = f"KV {_k(before.kv_tokens_per_rank)} -> {_k(after.kv_tokens_per_rank)} tokens a rank"
    old, new = now.config.mem_fraction_static or 0, launch.config.mem_fraction_static or 0
    fraction = f", mem_fraction_static {old:g} -> {new:g}" if old != new else ""
    effects = [*(["makes it fit"] if fitting else []), *_speed(now, launch), *_freed(now, launch)]
    misses = () if launch.prediction is None else missed(conditions.slos, launch.prediction)
    limits = f"; {'; '.join(misses)}" if misses else ""
    gain = None
    if now.prediction is not None and launch.prediction is not None:
        gain = 100.0 * (launch.prediction.output_tok_s / now.prediction.output_tok_s - 1.0)
    return Advice(
        flags=launch.flags,
        text=f"{launch.flags}: {', '.join(effects)}; {kv} ({_k(after.kv_tokens)} in all){fraction}{limits}",
        kv_before=before.kv_tokens_per_rank,
        kv_after=after.kv_tokens_per_rank,
        makes_it_fit=fitting,
        nodes=launch.config.nnodes,
        output_tok_s=None if launch.prediction is None else launch.prediction.output_tok_s,
        gain_percent=gain,
        misses=misses,
    )


def _speed(now: TriedLaunch, launch: TriedLaunch) -> list[str]:
    """Say the rate and TPOT before and after; with one figure where the line itself has none."""
    after, before = launch.prediction, now.prediction
    if after is None:
        return []
    if before is None:
        return [f"{after.output_tok_s:,.0f} tok/s"]
    percent = 100.0 * (after.output_tok_s / before.output_tok_s - 1.0)
    if abs(percent) < 1.0:
        return ["the same speed"]
    mtp = launch.config.speculative is not None and now.config.speculative != launch.config.speculative
    return [
        f"{percent:+.0f} %, {before.output_tok_s:,.0f} -> {after.output_tok_s:,.0f} tok/s",
        f"TPOT {before.tpot_ms['mean']:.1f} -> {after.tpot_ms['mean']:.1f} ms",
        *([f"{after.accepted_tokens:.2f} tokens a step assumed"] if mtp else []),
    ]


def _freed(now: TriedLaunch, launch: TriedLaunch) -> list[str]:
    gib = _reserved(now) - _reserved(launch)
    return [f"frees {gib:.1f} GiB a rank"] if gib >= LEAST_FREED_GIB else []


def _reserved(launch: TriedLaunch) -> float:
    """GiB of one GPU that are neither weights nor KV pool."""
    parts = launch.weighed.ledger.per_gpu_gib
    return float(sum(gib for owner, gib in parts.items() if owner != "KV pool" and not owner.startswith("weights")))


def _k(tokens: int) -> str:
    if tokens < 10_000:
        return f"{tokens:,}"
    return f"{tokens / 1e6:.2f}M" if tokens >= 1_000_000 else f"{tokens / 1e3:.0f}k"


def _flags(typed: ServerConfig, change: ServerConfig, context: Context) -> str | None:
    """Return what to add to the typed launch and what to leave out; None where the release cannot say it."""
    try:
        before, after = to_flags(typed, context.version), to_flags(change, context.version)
    except InputError:
        return None
    added = " ".join(word for flag in after if flag not in before for word in flag.argv)
    if change.nnodes > typed.nnodes:
        added += NODE_RANK
    still_set = {flag.name for flag in after}
    gone = [flag.name for flag in before if flag.name not in still_set]
    return added + (" without " + " ".join(gone) if gone else "")
