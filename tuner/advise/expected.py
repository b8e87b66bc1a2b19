"""Expected: what the model says of exactly this configuration under exactly this traffic, and of one that differs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hwprobe.bounds import LONGEST_TOKENS
from hwprobe.errors import InputError
from models.config import ServerConfig
from models.serving.estimate import Context, Prediction, prediction_of, replay_workload
from models.workload import Lengths, Workload
from planner.check.judge import Weighed, judge, modelled, weigh
from planner.rules import ERRORS
from planner.sglang.dialects import to_argv, to_flags
from planner.sglang.secret_flags import without_secrets
from tuner.advise.launched import Launched
from tuner.scrape.observed import Observed, lengths

LEAST_IN_FLIGHT, MOST_IN_FLIGHT = 0.05, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The traffic as the model takes it: lengths of what is computed, and requests in flight.

    `isl` counts prompt tokens without those found in the cache; `whole_isl` all of them.
    """

    isl: Lengths
    osl: Lengths
    whole_isl: float
    in_flight: int

    @property
    def workload(self) -> Workload:
        return Workload(isl=self.isl, osl=self.osl, concurrency=self.in_flight)


def traffic_of(observed: Observed) -> Traffic | None:
    """Return the traffic of a window, None where it does not tell lengths and load."""
    if not observed.in_flight or not LEAST_IN_FLIGHT < observed.in_flight < LONGEST_TOKENS:
        return None
    if (
        not observed.isl
        or not observed.osl
        or not all(1.0 <= length <= LONGEST_TOKENS for length in (observed.isl, observed.osl))
    ):
        return None
    fresh = max(1.0, observed.isl * (1.0 - min(1.0, max(0.0, observed.cached_share or 0.0))))
    return Traffic(
        isl=lengths(fresh, observed.isl_spread if not observed.cached_share else None),
        osl=lengths(observed.osl, observed.osl_spread),
        whole_isl=observed.isl,
        in_flight=max(1, min(MOST_IN_FLIGHT, round(observed.in_flight))),
    )


def acceptance_from(accept_length: float, steps: int) -> float:
    """Return the probability that a drafted token is accepted, from the tokens a step yields (1 + a + ... + a^k)."""
    low, high = 0.0, 0.999
    for _ in range(40):
        middle = 0.5 * (low + high)
        if sum(middle**power for power in range(steps + 1)) < accept_length:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high) if accept_length > 1.0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model of one running server under one traffic; answers are kept, for the same change is asked often."""

    server: Launched
    traffic: Traffic
    context: Context
    base: Prediction

    def change(self, change: ServerConfig, traffic: Traffic | None = None) -> Prediction | None:
        """Predict another typed configuration; None where `check` says it would not start or not fit."""
        server, workload = self.server, (traffic or self.traffic).workload
        checked = judge(change, self.context.arch, self.context.machine, self.context.version, rules=ERRORS)
        if not checked.sound:
            return None
        weighed = weigh(checked, self.context, workload, None)
        if weighed is None or not self._fits(weighed, workload):
            return None
        return _predicted(server, modelled(checked.resolved.config), self.context, workload)

    def whole_load(self) -> float:
        """Return the KV tokens that all requests in flight hold at once, on average."""
        return self.traffic.in_flight * (self.traffic.isl.mean + 0.5 * self.traffic.osl.mean)

    def _fits(self, weighed: Weighed, workload: Workload) -> bool:
        """Whether a change fits; of a server that runs though by the ledger it should not, one that takes no more."""
        if weighed.fits and weighed.shortage_gib <= 0:
            return True
        own = weigh(self.server.checked, self.context, workload, None)
        short = own is not None and (not own.fits or own.shortage_gib > 0)
        return short and own is not None and weighed.ledger.free_gib >= own.ledger.free_gib

    def line(self, typed: ServerConfig) -> str:
        """Return a launch line without its secrets, '' where the release cannot say it."""
        try:
            words = to_argv(typed, self.context.version)
        except InputError:
            return ""
        return shlex.join(["python3", "-m", "sglang.launch_server", *without_secrets(words)])

    def flags(self, change: ServerConfig) -> str:
        """Return what a change adds to the launch and what it leaves out; '' where the release cannot say it."""
        try:
            before, after = to_flags(self.server.typed, self.context.version), to_flags(change, self.context.version)
        except InputError:
            return ""
        added = " ".join(word for flag in after if flag not in before for word in flag.argv)
        still_set = {flag.name for flag in after}
        gone = " ".join(flag.name for flag in before if flag.name not in still_set)
        return added + (f"{' ' if added else ''}without {gone}" if gone else "")


def model_of(server: Launched, observed: Observed, traffic: Traffic) -> Model:
    """Return the model of a server as it is seen: with the acceptance its MTP has."""
    config, context = server.config, server.context
    if config.speculative is not None and observed.accept_length:
        accepted = acceptance_from(observed.accept_length, config.speculative.num_steps)
        context = replace(context, acceptance=accepted, acceptance_spread=0.02)
    base = _predicted(server, config, context, traffic.workload)
    return Model(server=server, traffic=traffic, context=context, base=base)


def _predicted(server: Launched, config: ServerConfig, context: Context, workload: Workload) -> Prediction:
    filled = server.memory(config)
    longest = float(workload.isl.nominal + workload.osl.nominal)
    if float(filled.kv_tokens_per_rank[0]) < longest:  # what runs does hold them: the ledger is off
        filled = replace(
            filled, kv_tokens_per_rank=np.array([longest]), kv_tokens=np.array([longest * config.attn_dp_size])
        )
    placed = replace(context, machine=context.machine.with_nodes(max(1, config.nnodes)))
    played = replay_workload(placed, config, workload, filled)
    return prediction_of(placed, config, workload, filled=filled, played=played)


def expected_document(model: Model, observed: Observed) -> dict[str, Any]:
    """Return the expectation and how far the server is from it: measured over predicted, in percent."""
    base = model.base
    return {
        "output_tok_s": base.output_tok_s,
        "ttft_ms": base.ttft_ms,
        "tpot_ms": base.tpot_ms,
        "e2e_ms": base.e2e_ms,
        "step_ms": base.step_ms,
        "accepted_tokens": base.accepted_tokens,
        "running_requests": base.running_requests,
        "limiting": base.limiting,
        "breakdown_ms": base.breakdown_ms,
        "band": base.band,
        "kv_tokens": model.server.kv_tokens,
        "retractions": base.retractions,
        "traffic": {"isl": model.traffic.isl.mean, "osl": model.traffic.osl.mean,
                    "in_flight": model.traffic.in_flight},
        "measured_over_predicted_percent": {
            name: round(100.0 * (ratio - 1.0), 1) for name, ratio in ratios(model, observed).items()
        },
        "profile": model.context.engine.name,
    }  # fmt: skip


def ratios(model: Model, observed: Observed) -> dict[str, float]:
    """Return measured over predicted of the mean latencies and the output rate, where both are known."""
    base, by_figure = model.base, {}
    for name, measured, predicted in (
        ("ttft_ms", observed.ttft_ms.get("mean"), base.ttft_ms["mean"]),
        ("tpot_ms", observed.tpot_ms.get("mean"), base.tpot_ms["mean"]),
        ("e2e_ms", observed.e2e_ms.get("mean"), base.e2e_ms["mean"]),
        ("output_tok_s", observed.output_tok_s if observed.basis == "window" else None, base.output_tok_s),
    ):
        if measured and predicted > 0:
            by_figure[name] = measured / predicted
    return by_figure
