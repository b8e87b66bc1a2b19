"""What may vary: layouts, MTP, memory fraction, chunk, graph sizes; and the grid the search walks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace

from packaging.version import Version

from models.architecture import ModelArchitecture
from models.config import ServerConfig, Speculative
from models.machine import Machine
from models.serving.estimate import Context
from models.version import at_least
from planner.plans.alternatives import typed_attention, typed_page
from planner.sglang.dialects import FREE_ATTENTION_DP
from planner.sglang.resolver import effective_chunk, resolve, typed_chunk

MTP_STEPS = (0, 1, 2, 3)
FRACTIONS = tuple(round(0.70 + 0.02 * step, 2) for step in range(14))
CHUNKS = (2048, 4096, 8192, 16384, 32768)
GRAPH_SIZES = (8, 16, 32, 64, 128, 160, 256, 512)
LARGEST_PP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The values each knob may take. `mtp_steps` 0 is MTP off; `layouts` lists parallelism shapes."""

    layouts: tuple[ServerConfig, ...]
    mtp_steps: tuple[int, ...] = MTP_STEPS
    fractions: tuple[float, ...] = FRACTIONS
    chunks: tuple[int, ...] = CHUNKS
    resolved: dict[ServerConfig, tuple[Context, ServerConfig]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def resolve(self, shape: ServerConfig, context: Context) -> ServerConfig:
        """Return the shape with SGLang's defaults: the same for every number of clients, and kept."""
        entry = self.resolved.get(shape)
        if entry is None or entry[0] is not context:
            entry = context, resolve(shape, context.arch, context.machine, context.version).config
            self.resolved[shape] = entry
        return entry[1]


def default_space(machine: Machine, version: Version, *, arch: ModelArchitecture, mtp: bool = True) -> Space:
    """Return everything worth considering on this machine with this version."""
    chosen = tuple(layouts(machine, version, flags=checkpoint_flags(arch, version)))
    return Space(layouts=chosen, mtp_steps=MTP_STEPS if mtp and arch.has_mtp else (0,))


def checkpoint_flags(arch: ModelArchitecture, version: Version) -> dict[str, str]:
    """Return the flags a checkpoint needs to be read as what it is, by SGLang's field names.

    4-bit experts of AWQ and GPTQ had no kernels of their own before 0.4.9.post3 (rule int4-experts-release); Meituan's
    channel INT8 and NVIDIA's FP4 are published with their --quantization.
    """
    method = arch.weight_formats.method
    if method in ("awq", "gptq") and at_least(version, "0.4.4.post4") and not at_least(version, "0.4.9.post3"):
        return {"quantization": "moe_wna16"}
    return {"quantization": method} if method in ("w8a8_int8", "modelopt_fp4") else {}


def layouts(machine: Machine, version: Version, flags: dict[str, str] | None = None) -> Iterator[ServerConfig]:
    """Yield every way to lay the model over all GPUs of the machine: TP, PP, attention DP, EP."""
    gpus = machine.gpu_count
    for pp in _divisors(gpus, LARGEST_PP):
        if pp > 1 and not at_least(version, "0.4.6.post2"):
            continue
        tp = gpus // pp
        base = ServerConfig(tp_size=tp, pp_size=pp, nnodes=machine.nodes)
        yield from layouts_on(base.with_flags(**flags) if flags else base, version)


def layouts_on(base: ServerConfig, version: Version) -> Iterator[ServerConfig]:
    """Yield a configuration without attention DP or EP with every degree of either that the release can express."""
    for dp in _divisors(base.tp_size, base.tp_size):
        if dp in (1, base.tp_size) or at_least(version, FREE_ATTENTION_DP):
            yield from _expert_layouts(replace(base, attn_dp_size=dp), version)


def _expert_layouts(base: ServerConfig, version: Version) -> Iterator[ServerConfig]:
    """Yield the layout without EP, with EP over all-reduce, and with DeepEP."""
    yield base
    if base.tp_size == 1 or base.pp_size > 1:
        return
    yield replace(base, ep_size=base.tp_size)
    if at_least(version, "0.4.4.post2") and base.attn_dp_size == base.tp_size:
        yield replace(base, ep_size=base.tp_size, moe_a2a_backend="deepep")


def shapes(space: Space) -> Iterator[ServerConfig]:
    """Yield layouts combined with MTP: what distinguishes families of configurations."""
    for layout in space.layouts:
        for steps in space.mtp_steps:
            yield replace(layout, speculative=Speculative.chain(steps) if steps else None)


def fill_grid(shape: ServerConfig, space: Space, concurrency: int, context: Context) -> list[ServerConfig]:
    """Return the shape with every fraction, chunk and graph size, other defaults resolved.

    max_running_requests is just enough for the clients, and graphs just large enough for a rank's share:
    both larger only cost memory. SGLang's own graph default is kept as an alternative.
    """
    resolved = space.resolve(shape, context)
    per_rank = -(-concurrency // shape.attn_dp_size)
    running = per_rank * shape.attn_dp_size
    graphs = {graph_size(per_rank), resolved.cuda_graph_max_bs_decode or 160}
    same = {field.name: getattr(resolved, field.name) for field in fields(resolved)} | {"max_running_requests": running}
    return [
        ServerConfig(
            **same
            | {
                "mem_fraction_static": fraction,
                "chunked_prefill_size": effective_chunk(chunk, shape.attn_dp_size, context.version),
                "cuda_graph_max_bs_decode": graph,
            }
        )
        for fraction in space.fractions
        for chunk in space.chunks
        for graph in sorted(graphs)
    ]


def graph_size(per_rank: int) -> int:
    """Return the smallest size of the decode graphs that covers a rank's share of the clients."""
    return next((size for size in GRAPH_SIZES if size >= per_rank), GRAPH_SIZES[-1])


def _divisors(number: int, largest: int) -> Iterable[int]:
    return [d for d in range(1, min(number, largest) + 1) if number % d == 0]


def as_launched(config: ServerConfig, version: Version) -> ServerConfig:
    """Return a resolved configuration as it should be typed: without what SGLang does by itself anyway.

    What SGLang multiplies or divides (chunk, requests) is global already; its 0.3 on the schedule
    conservativeness under attention DP is not typed, else it would be applied twice.
    """
    chunk = config.chunked_prefill_size
    return replace(
        config,
        schedule_conservativeness=_typed_conservativeness(config),
        chunked_prefill_size=typed_chunk(chunk, config.attn_dp_size, version) if chunk else chunk,
        schedule_policy=None,
        kv_cache_dtype=None if config.kv_cache_dtype in ("auto", "bfloat16") else config.kv_cache_dtype,
        attention_backend=typed_attention(config),
        page_size=typed_page(config),
        stream_interval=None if config.stream_interval == 1 else config.stream_interval,
        scheduler_recv_interval=None if config.scheduler_recv_interval == 1 else config.scheduler_recv_interval,
        context_length=None,
    )


def _typed_conservativeness(config: ServerConfig) -> float | None:
    if config.schedule_conservativeness is None:
        return None  # SGLang's default, whatever it makes of it
    resolved = config.schedule_conservativeness
    typed = resolved / 0.3 if config.attn_dp_size > 1 else resolved
    return None if abs(typed - 1.0) < 1e-9 else round(typed, 4)
