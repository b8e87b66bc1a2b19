"""What figures may be: one table of bounds on what is physical, for every reader of a file or an option.

Each range covers today's hardware with room for two more generations: what lies outside is a slip of the unit or the
pen, and an answer from it would be wrong without a sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hwprobe.errors import InputError


@dataclass(frozen=True, slots=True)
class Bound:
    """From `least` to `most`, both included, in `unit` ('' for a number without one)."""

    least: float
    most: float
    unit: str = ""

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{_plain(self.least)} to {_plain(self.most)}{unit}"

    def clamped(self, value: float) -> float:
        """Return the nearest value within."""
        return min(max(value, self.least), self.most)


# Data sheets end at 288 GB, 8 TB/s and 20 PFLOP/s a GPU (GB300), and begin at 4 GB, 0.1 TB/s and 10 TFLOP/s.
MACHINE = {
    "memory_mib": Bound(1024, 2 * 2**20, "MiB of one GPU"),
    "hbm_gb_s": Bound(10, 100_000, "GB/s"),
    "bf16_tflops": Bound(1, 100_000, "TFLOP/s"),
    "fp8_tflops": Bound(1, 100_000, "TFLOP/s"),
    "nvlink_gb_s": Bound(0.1, 10_000, "GB/s per direction"),
    "sm_count": Bound(1, 10_000, "multiprocessors"),
    "internode_gb_s": Bound(0.01, 10_000, "GB/s per GPU and direction"),
    "p2p_gb_s": Bound(0.0, 10_000, "GB/s"),
    "p2p_latency_us": Bound(0.0, 1e6, "us"),
    "p2p_both_gb_s": Bound(0.0, 20_000, "GB/s"),
    "all_to_all_gb_s": Bound(0.0, 10_000, "GB/s per GPU and direction"),
    "time_us": Bound(0.01, 1e9, "us"),
    "ranks": Bound(2, 4096, "ranks"),
    "message_bytes": Bound(1, 2**40, "bytes"),
    "memory_gib": Bound(0.1, 2**20, "GiB of host memory"),
    "shm_gib": Bound(0.0, 2**20, "GiB of shared memory"),
    "logical_cpus": Bound(1, 100_000, "CPUs"),
    "free_gib": Bound(0.5, 2048, "GiB of one GPU"),
}
# Shipped profiles lie at least a factor of ten inside.
ENGINE = {
    "tau_us": Bound(0.01, 10_000, "us"),
    "eta_w": Bound(0.005, 20),
    "eta_pf": Bound(0.005, 20),
    "eta_pa": Bound(0.005, 20),
    "eta_kv": Bound(0.005, 20),
    "t_pf0_ms": Bound(0.01, 1e5, "ms"),
    "mla_floor_us": Bound(0.01, 1e5, "us"),
    "token_us": Bound(0.0, 1e4, "us"),
    "host_ms": Bound(0.0, 1e5, "ms"),
    "ep_layer_us": Bound(0.0, 1e5, "us"),
    "dp_layer_us": Bound(0.0, 1e5, "us"),
    "internode_us": Bound(0.01, 1e6, "us"),
    "mtp_step_ms": Bound(0.001, 1e4, "ms"),
    "mtp_host_ms": Bound(0.001, 1e4, "ms"),
    "mtp_request_us": Bound(0.001, 1e6, "us"),
    "first_wave_s": Bound(0.0001, 1e4, "s"),
    "ep_prefill": Bound(0.1, 100, "times"),
    "transfer_gb_s": Bound(0.001, 1e5, "GB/s"),
    "prefill_role": Bound(0.01, 100, "times"),
    "decode_role": Bound(0.01, 100, "times"),
    "decode": Bound(0.0001, 10),
    "prefill": Bound(0.0001, 10),
    "sigma": Bound(0.0, 4.0),
    "tpot_mape_percent": Bound(0.0, 1e4, "%"),
}
WORLD = {
    "parameters": Bound(0.01, 100, "times what is believed"),
    "time_factor": Bound(0.01, 100, "times"),
    "extra_memory_gib": Bound(-2048, 2048, "GiB"),
    "boot_s": Bound(0.0001, 86_400, "s"),
    "slice_boot_s": Bound(0.0001, 86_400, "s"),
    "transfer_gb_s": Bound(0.0001, 10_000, "GB/s"),
    "transfer_latency_ms": Bound(0.0, 60_000, "ms"),
    "sigma": ENGINE["sigma"],
}
LONGEST_TOKENS = 10_000_000
REQUESTS = {
    "isl": Bound(1, LONGEST_TOKENS, "tokens"),
    "osl": Bound(1, LONGEST_TOKENS, "tokens"),
    "concurrency": Bound(1, LONGEST_TOKENS, "requests"),
    "users": Bound(1, LONGEST_TOKENS, "users"),
    "range_ratio": Bound(0.0, 1.0),
    "request_rate": Bound(1e-6, 1e6, "requests per second"),
    "min_user_tok_s": Bound(0.001, 1e5, "tok/s"),
    "slo_ms": Bound(0.001, 1e9, "ms"),
    "cost_per_gpu_hour": Bound(1e-6, 1e6),
    "waves": Bound(1, 10_000),
    "vocabulary": Bound(16, LONGEST_TOKENS, "tokens"),
}
# A record of a benchmark. 0 is no measurement; lengths of 0 are requests that sent or asked for nothing.
POINT = {
    "n_gpus": Bound(0, 4096, "GPUs"),
    "tp": Bound(0, 4096, "ranks"),
    "attn_dp": Bound(0, 4096, "ranks"),
    "ep": Bound(0, 4096, "ranks"),
    "pp": Bound(0, 4096, "stages"),
    "n_nodes": Bound(0, 4096, "nodes"),
    "mtp_steps": Bound(0, 1000, "steps"),
    "mtp_topk": Bound(0, 1000),
    "mtp_draft_tokens": Bound(0, 10_000, "tokens"),
    "accept_length": Bound(0.0, 10_000, "tokens"),
    "mem_fraction_static": Bound(0.0, 1.0),
    "max_total_num_tokens": Bound(0, 10**11, "tokens"),
    "isl": Bound(0, LONGEST_TOKENS, "tokens"),
    "osl": Bound(0, LONGEST_TOKENS, "tokens"),
    "range_ratio": REQUESTS["range_ratio"],
    "concurrency": Bound(0, LONGEST_TOKENS, "requests"),
    "request_rate": Bound(0.0, 1e6, "requests per second"),
    "num_prompts": Bound(0, 10**9, "requests"),
    "context_tokens": Bound(0, LONGEST_TOKENS, "tokens"),
    "num_hidden_layers": Bound(0, 1000, "layers"),
    "first_k_dense_replace": Bound(0, 1000, "layers"),
    "ttft_mean_ms": Bound(0.0, 1e8, "ms"),
    "ttft_median_ms": Bound(0.0, 1e8, "ms"),
    "tpot_mean_ms": Bound(0.0, 1e7, "ms"),
    "tpot_median_ms": Bound(0.0, 1e7, "ms"),
    "output_tok_s": Bound(0.0, 1e9, "tok/s"),
}
# What one launch was configured with, as trial records hold it.
SERVER = {
    "tp_size": Bound(1, 4096, "ranks"),
    "attn_dp_size": Bound(1, 4096, "ranks"),
    "ep_size": Bound(1, 4096, "ranks"),
    "pp_size": Bound(1, 4096, "stages"),
    "nnodes": Bound(1, 4096, "nodes"),
    "mem_fraction_static": Bound(0.0, 1.0),
    "max_running_requests": Bound(1, LONGEST_TOKENS, "requests"),
    "page_size": Bound(1, LONGEST_TOKENS, "tokens"),
    "context_length": Bound(1, 10**9, "tokens"),
}
# DeepSeek-R1 has 61 layers, 256 experts and a hidden size of 7,168.
MODEL = {
    "vocab_size": Bound(1, 10**8),
    "hidden_size": Bound(1, 10**6),
    "intermediate_size": Bound(1, 10**7),
    "moe_intermediate_size": Bound(1, 10**7),
    "num_hidden_layers": Bound(1, 1000),
    "first_k_dense_replace": Bound(0, 1000),
    "num_attention_heads": Bound(1, 10_000),
    "n_routed_experts": Bound(1, 100_000),
    "n_shared_experts": Bound(1, 1000),
    "num_experts_per_tok": Bound(1, 10_000),
    "q_lora_rank": Bound(1, 10**6),
    "kv_lora_rank": Bound(1, 10**6),
    "qk_nope_head_dim": Bound(1, 10**5),
    "qk_rope_head_dim": Bound(1, 10**5),
    "v_head_dim": Bound(1, 10**5),
    "max_position_embeddings": Bound(1, 10**9, "tokens"),
    "num_nextn_predict_layers": Bound(0, 100),
}


def within(value: float, name: str, bound: Bound, where: str = "") -> float:
    """Return a number that lies in its range. Raises InputError naming it, the range and `where` it stands."""
    if bound.least <= value <= bound.most:  # NaN is in no range
        return value
    raise InputError(f"{where}{': ' if where else ''}{name} is {_plain(value)}; it must be from {bound}")


def check_fields(record: object, table: Mapping[str, Bound], where: str, place: str = "") -> None:
    """Raise InputError for the first field of a record that lies outside its range; None is unknown and passes."""
    for name, bound in table.items():
        value = getattr(record, name, None)
        if value is not None:
            within(value, f"{place}{name}", bound, where)


def _plain(value: float) -> str:
    """Return a number as people write it: 4,096 and 0.005, and 1e+30 where the digits say nothing."""
    if isinstance(value, int) and abs(value) < 10**12:
        return f"{value:,}"
    if abs(value) > 1e300:
        return "a number beyond any range"
    if not (value == 0 or 1e-4 <= abs(value) < 1e12):
        return f"{float(value):g}"
    return f"{int(value):,}" if value == int(value) else f"{value:g}"
