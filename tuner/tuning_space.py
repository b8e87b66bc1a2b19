"""The study's parameters: flat categorical choices, and the configuration a choice stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from models.config import ServerConfig, Speculative
from models.estimate import Context
from models.workload import Workload
from planner.resolver import DEFAULT_REQUESTS_PER_RANK, resolve
from planner.space import CHUNKS, FRACTIONS, Space, as_launched, graph_size

DEFAULT = "default"
CLIENTS = "clients"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TuningSpace:
    """Choices per parameter. `default` means SGLang's default; `clients` means just enough for the clients."""

    layouts: dict[str, ServerConfig]
    choices: dict[str, tuple[int | float | str, ...]]
    context: Context
    workload: Workload

    def config(self, params: dict[str, Any]) -> ServerConfig:
        """Return the resolved configuration of a choice of parameters."""
        layout = self.layouts[params["layout"]]
        steps = int(params["mtp_steps"])
        per_rank = min(DEFAULT_REQUESTS_PER_RANK, -(-self.workload.concurrency // layout.attn_dp_size))
        typed = replace(
            layout,
            speculative=Speculative.chain(steps) if steps else None,
            mem_fraction_static=_unless_default(params["mem_fraction_static"]),
            chunked_prefill_size=_unless_default(params["chunked_prefill_size"]),
            cuda_graph_max_bs_decode=graph_size(per_rank) if params["cuda_graph"] == CLIENTS else None,
            max_running_requests=per_rank * layout.attn_dp_size if params["max_running"] == CLIENTS else None,
        )
        return resolve(typed, self.context.arch, self.context.machine, self.context.version).config

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
            "max_running": CLIENTS,
        }

    def default_params(self, layout: ServerConfig) -> dict[str, Any]:
        """Return the parameters of a layout with every other flag left to SGLang."""
        return {
            "layout": layout.layout,
            "mtp_steps": 0,
            "mem_fraction_static": DEFAULT,
            "chunked_prefill_size": DEFAULT,
            "cuda_graph": DEFAULT,
            "max_running": DEFAULT,
        }


def tuning_space(space: Space, layouts: dict[str, ServerConfig], context: Context, workload: Workload) -> TuningSpace:
    """Build the study's space from the planner's, over the layouts that can hold the model."""
    return TuningSpace(
        layouts=layouts,
        choices={
            "layout": tuple(layouts),
            "mtp_steps": space.mtp_steps,
            "mem_fraction_static": (DEFAULT, *FRACTIONS),
            "chunked_prefill_size": (DEFAULT, *CHUNKS),
            "cuda_graph": (DEFAULT, CLIENTS),
            "max_running": (DEFAULT, CLIENTS),
        },
        context=context,
        workload=workload,
    )


def _unless_default(value: Any) -> Any:
    return None if value == DEFAULT else value
