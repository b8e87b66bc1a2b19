"""What the emulated server says of itself: the documents of /server_info and /v1/loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.serving.scheduler import Scheduler
from planner.sglang.secret_flags import without_secrets

if TYPE_CHECKING:
    from tuner.emulator.api_server import ApiServer
    from tuner.emulator.role_metrics import RoleMetrics


def server_document(api: ApiServer, name: str) -> dict[str, Any]:
    """Return /server_info: the arguments as resolved, and what the scheduler adds."""
    config, boot_s = api.config, api.boot_s
    speculative = config.speculative
    return {
        **{key: value for key, value in api.arguments.items() if isinstance(value, str | int | float | None)},
        "served_model_name": name,
        "tp_size": config.tp_size,
        "attn_dp_size": config.attn_dp_size,
        "ep_size": config.ep_size,
        "mem_fraction_static": config.mem_fraction_static,
        "max_running_requests": config.max_running_requests,
        "chunked_prefill_size": config.chunked_prefill_size,
        "cuda_graph_max_bs_decode": config.cuda_graph_max_bs_decode,
        "context_length": config.context_length,
        "stream_interval": config.stream_interval or 1,
        "scheduler_recv_interval": config.scheduler_recv_interval or 1,
        "disable_radix_cache": config.disable_radix_cache,
        "speculative_num_steps": speculative.num_steps if speculative else None,
        "speculative_eagle_topk": speculative.eagle_topk if speculative else None,
        "speculative_num_draft_tokens": speculative.num_draft_tokens if speculative else None,
        "launch_command": " ".join(without_secrets(api.typed)),
        "status": "ready",
        "version": api.version,
        "simulated": True,
        "max_total_num_tokens": api.kv_tokens_per_rank,
        "startup_time": {"load_weight": 0.5 * boot_s, "kv_cache_allocation": 0.05 * boot_s,
                         "cuda_graph": {"decode": 0.25 * boot_s}},
        "internal_states": [_state(api) for _ in range(api.observed.ranks)],
    }  # fmt: skip


def _state(api: ApiServer) -> dict[str, Any]:
    """Return one attention-DP rank's state."""
    return {
        "last_gen_throughput": 0.0,
        "avg_spec_accept_length": api.times.accepted,
        "effective_max_running_requests_per_dp": api.limits.max_running // api.observed.ranks,
        "memory_usage": {"token_capacity": api.kv_tokens_per_rank},
    }


def loads_document(api: ApiServer, server: Scheduler, role: RoleMetrics | None = None) -> dict[str, Any]:
    """Return /v1/loads: one load for every attention-DP rank."""
    ranks = api.observed.ranks
    return {
        "version": api.version,
        "accelerator": api.device,
        "num_accelerators": max(1, api.config.gpu_count // ranks),
        "loads": [
            _load(api, server, rank) | ({"disaggregation": role.load(rank)} if role is not None else {})
            for rank in range(ranks)
        ],
    }


def _load(api: ApiServer, server: Scheduler, rank: int) -> dict[str, Any]:
    ranks, accepted = api.observed.ranks, api.times.accepted
    running = [request for request in server.running.values() if request.index % ranks == rank]
    waiting = sum(request.index % ranks == rank for request in server.waiting)
    used = int(sum(request.prompt + (server.step - request.start_step) * accepted for request in running))
    return {
        "dp_rank": rank,
        "num_running_reqs": len(running),
        "num_waiting_reqs": waiting,
        "num_used_tokens": used,
        "max_total_num_tokens": api.kv_tokens_per_rank,
        "max_running_requests": api.limits.max_running // ranks,
        "token_usage": used / max(1, api.kv_tokens_per_rank),
        "speculative": {"accept_length": accepted},
        "queues": {"waiting": waiting, "retracted": server.retractions},
    }
