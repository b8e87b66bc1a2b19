"""Knobs no equation prices: the values worth a launch on a machine, a version and a workload, SGLang's own first.

Kernels (MoE runner, attention backend, KV cache type, page) and the scheduler's habits. The tuner tries them as moves
from a good configuration; `sgtune plan`, which cannot tell them apart, leaves them at SGLang's defaults.
"""

from __future__ import annotations

from packaging.version import Version

from models.config import ServerConfig
from models.machine import Machine
from models.version import at_least
from planner.sglang.backends import PAGED_32_64, PAGED_64, SPARSE, SPARSE_BEFORE
from planner.sglang.flags import flags_of

DEFAULT = "default"
Choice = int | float | str | bool
# Fields of ServerConfig by SGLang's name, in the order they are shown.
UNMODELLED = (
    "moe_runner_backend", "attention_backend", "page_size", "kv_cache_dtype", "schedule_conservativeness",
    "enable_mixed_chunk", "scheduler_recv_interval", "stream_interval", "disable_radix_cache",
)  # fmt: skip
# Attention backends that SGLang chooses by itself somewhere: typed only where they were chosen against its own choice.
AUTOMATIC_ATTENTION = ("fa3", "trtllm_mla", "triton", SPARSE, SPARSE_BEFORE)
# From so many clients on one scheduler loop feeds, and is fed by, enough streams that its habits may show.
BUSY_CLIENTS = 32


def alternatives(
    machine: Machine, version: Version, concurrency: int, *, shared_prefix: bool = False
) -> dict[str, tuple[Choice, ...]]:
    """Return the values of every knob of UNMODELLED, `default` first; only `default` where no other can help.

    Sources: SGLang's tuning guide, its attention-backend matrix (MLA), and the published R1 settings for Hopper and
    Blackwell. Whether values go together is for the rules.
    """
    busy = concurrency >= BUSY_CLIENTS
    candidates: dict[str, tuple[Choice, ...]] = {
        "moe_runner_backend": ("deep_gemm",),
        "attention_backend": _attention(machine, version),
        "page_size": (64,),
        "kv_cache_dtype": ("fp8_e4m3",) if _reads_fp8(machine, version) else (),
        "schedule_conservativeness": (0.3,) if busy else (),
        "enable_mixed_chunk": (True,) if busy else (),
        "scheduler_recv_interval": (10,) if busy else (),
        "stream_interval": (10,) if busy else (),
        "disable_radix_cache": () if shared_prefix else (True,),
    }
    return {name: (DEFAULT, *(v for v in candidates[name] if _known(name, v, version))) for name in UNMODELLED}


def _attention(machine: Machine, version: Version) -> tuple[str, ...]:
    """Backends beside SGLang's own choice that serve MLA on this GPU."""
    if machine.is_hopper:
        return ("flashmla", "flashinfer")
    if machine.is_blackwell and at_least(version, "0.5.0"):
        return ("cutedsl_mla", "flashinfer")
    return ("flashinfer",)


def _reads_fp8(machine: Machine, version: Version) -> bool:
    """Say whether a backend of the release is documented to read an FP8 cache of MLA as it is."""
    return at_least(version, "0.4.6") if machine.is_hopper else machine.is_blackwell and at_least(version, "0.5.0")


def _known(name: str, value: Choice, version: Version) -> bool:
    """Say whether the release's command line can express the value."""
    flags = flags_of(version).by_dest
    if name == "attention_backend" and f"enable_{str(value).replace('flashinfer', 'flashinfer_mla')}" in flags:
        return True  # 0.4.3 to 0.4.5 had a switch for each, and ignored --attention-backend for MLA
    flag = flags.get(name)
    return flag is not None and (not flag.choices or value in flag.choices)


def typed_attention(config: ServerConfig) -> str | None:
    """Return the attention backend to type: none that SGLang may choose by itself."""
    return None if config.attention_backend in AUTOMATIC_ATTENTION else config.attention_backend


def typed_page(config: ServerConfig) -> int | None:
    """Return the page size to type: none that is SGLang's default or that the attention backend forces."""
    page, backend = config.page_size, config.attention_backend
    forced = backend in (*PAGED_64, SPARSE, SPARSE_BEFORE) or (backend in PAGED_32_64 and page == 64)
    return None if page in (None, 1) or forced else page
