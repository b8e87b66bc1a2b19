"""The study's parameters: flat categorical choices, and the configuration a choice stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.config import ServerConfig, Speculative
from models.serving.estimate import Context
from models.workload import Metric, Slo, Workload
from planner.plans.alternatives import AUTOMATIC_ATTENTION, DEFAULT, UNMODELLED, Choice, alternatives, typed_page
from planner.plans.search import LATENCY_SHARES
from planner.plans.space import CHUNKS, FRACTIONS, Space, as_launched, graph_size
from planner.sglang.resolver import DEFAULT_REQUESTS_PER_RANK, resolve

CLIENTS = "clients"
# The knobs that equations price: every combination is a candidate. The others (UNMODELLED) are varied one by one.
CORE = ("layout", "mtp_steps", "mem_fraction_static", "chunked_prefill_size", "cuda_graph", "max_running")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TuningSpace:
    """Choices per parameter. `default` means SGLang's default; `clients` means just enough for the clients.

    Choices of CORE are combined; those of UNMODELLED vary one at a time from their first value, the default. `named`
    holds the parameters that a space file names.
    """

    layouts: dict[str, ServerConfig]
    choices: dict[str, tuple[Choice, ...]]
    context: Context
    workload: Workload
    named: frozenset[str] = frozenset()

    def config(self, params: dict[str, Any]) -> ServerConfig:
        """Return the resolved configuration of a choice of parameters; a knob not among them is SGLang's own."""
        layout = self.layouts[params["layout"]]
        steps = int(params["mtp_steps"])
        running = params["max_running"]
        clients = running if isinstance(running, int) else self.workload.concurrency
        per_rank = min(DEFAULT_REQUESTS_PER_RANK, -(-clients // layout.attn_dp_size))
        unpriced = {name: params[name] for name in UNMODELLED if params.get(name, DEFAULT) != DEFAULT}
        typed = replace(
            layout,
            speculative=Speculative.chain(steps) if steps else None,
            mem_fraction_static=_unless_default(params["mem_fraction_static"]),
            chunked_prefill_size=_unless_default(params["chunked_prefill_size"]),
            cuda_graph_max_bs_decode=graph_size(per_rank) if params["cuda_graph"] == CLIENTS else None,
            max_running_requests=None if running == DEFAULT else per_rank * layout.attn_dp_size,
            **unpriced,
        )
        resolved = resolve(typed, self.context.arch, self.context.machine, self.context.version).config
        return _spelled_out(resolved, unpriced)

    @property
    def defaults(self) -> dict[str, Choice]:
        """The first value of every unpriced knob: SGLang's own, unless a space file fixed another."""
        return {name: values[0] for name, values in self.choices.items() if name in UNMODELLED}

    def params_of(self, config: ServerConfig) -> dict[str, Any]:
        """Return the parameters whose configuration is nearest to a planner's candidate."""
        layout = replace(
            ServerConfig(tp_size=config.tp_size, pp_size=config.pp_size, nnodes=config.nnodes),
            attn_dp_size=config.attn_dp_size,
            ep_size=config.ep_size,
            moe_a2a_backend=config.moe_a2a_backend,
        )
        return {
            "layout": layout.layout,
            "mtp_steps": config.speculative.num_steps if config.speculative else 0,
            "mem_fraction_static": config.mem_fraction_static,
            "chunked_prefill_size": as_launched(config, self.context.version).chunked_prefill_size,
            "cuda_graph": CLIENTS,
            "max_running": self._running(config),
            **self.defaults,
        }

    def _running(self, config: ServerConfig) -> Choice:
        """Return the choice of running requests nearest to a planner's candidate."""
        counts = [value for value in self.choices["max_running"] if isinstance(value, int)]
        clients, running = self.workload.concurrency, config.max_running_requests or 0
        nearest = min(counts, key=lambda value: abs(value - running), default=clients)
        return CLIENTS if abs(clients - running) <= abs(nearest - running) else nearest

    def default_params(self, layout: ServerConfig) -> dict[str, Any]:
        """Return the parameters of a layout with every other flag left to SGLang."""
        return {
            "layout": layout.layout,
            "mtp_steps": 0,
            "mem_fraction_static": DEFAULT,
            "chunked_prefill_size": DEFAULT,
            "cuda_graph": DEFAULT,
            "max_running": DEFAULT,
            **dict.fromkeys(self.defaults, DEFAULT),
        }


def tuning_space(
    space: Space, layouts: dict[str, ServerConfig], context: Context, workload: Workload, slos: Sequence[Slo] = ()
) -> TuningSpace:
    """Build the study's space from the planner's, over the layouts that can hold the model.

    Under a limit on TPOT or E2E fewer requests may run at once than there are clients.
    """
    shares = LATENCY_SHARES[1:] if any(slo.metric is not Metric.TTFT for slo in slos) else ()
    fewer = sorted({max(1, round(workload.concurrency * share)) for share in shares}, reverse=True)
    return TuningSpace(
        layouts=layouts,
        choices={
            "layout": tuple(layouts),
            "mtp_steps": space.mtp_steps,
            "mem_fraction_static": (DEFAULT, *FRACTIONS),
            "chunked_prefill_size": (DEFAULT, *CHUNKS),
            "cuda_graph": (DEFAULT, CLIENTS),
            "max_running": (DEFAULT, CLIENTS, *(count for count in fewer if count < workload.concurrency)),
            **alternatives(context.machine, context.version, workload.concurrency),
        },
        context=context,
        workload=workload,
    )


def _spelled_out(config: ServerConfig, knobs: dict[str, Any]) -> ServerConfig:
    """Return the configuration with the chosen values as flags, even where SGLang would choose the same."""
    typed: dict[str, Any] = {}
    if knobs.get("attention_backend") in AUTOMATIC_ATTENTION:
        typed["attention_backend"] = knobs["attention_backend"]
    if knobs.get("page_size") == 1 and typed_page(config) is None:
        typed["page_size"] = 1
    return config.with_flags(**typed) if typed else config


def _unless_default(value: Any) -> Any:
    return None if value == DEFAULT else value
