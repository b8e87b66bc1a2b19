"""Slices on an engine: boot the model with fewer layers, measure a few loads, keep every point as a record."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from hwprobe.errors import InputError
from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.layout import table_of
from models.serving.estimate import Context
from models.workload import Workload
from planner.sglang.arguments import read_arguments
from planner.sglang.dialects import from_values
from planner.sglang.resolver import resolve
from tuner.seam import Measurement, Server, Verdict

MOST_CLIENTS = 4096
# Verdicts that leave the median of repeats valid.
USABLE = (Verdict.OK, Verdict.UNSTEADY)
# What `calibrate` does not learn from.
LEFT_OUT = "outlier"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Override:
    num_hidden_layers: int | None = None
    first_k_dense_replace: int | None = None


def override_text(arch: ModelArchitecture) -> str:
    """Return what --json-model-override-args makes of the whole model for it to be this slice."""
    layers = {"num_hidden_layers": arch.num_hidden_layers, "first_k_dense_replace": arch.first_k_dense_replace}
    return json.dumps(layers, separators=(",", ":"))


def slice_of(whole: ModelArchitecture, text: str) -> ModelArchitecture:
    """Return the slice that a text of --json-model-override-args leaves. Raises InputError where it leaves no slice."""
    try:
        override = msgspec.json.decode(text, type=_Override)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InputError(f"--json-model-override-args: {error}") from error
    layers = whole.num_hidden_layers if override.num_hidden_layers is None else override.num_hidden_layers
    return whole.sliced(layers, override.first_k_dense_replace)


def slices_of(whole: ModelArchitecture, text: str, dense: int | None) -> tuple[ModelArchitecture, ...]:
    """Return the slices that --slice names, shallowest first. Raises InputError naming the flag."""
    try:
        depths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise InputError(f"--slice is '{text}'; write layers as in --slice 4,8") from None
    if len(depths) < 2:
        raise InputError(f"--slice is '{text}'; two depths are needed to tell layers from the fixed cost: --slice 4,8")
    if depths[-1] > whole.num_hidden_layers or depths[0] < 1:
        raise InputError(f"--slice is '{text}'; {whole.name} has {whole.num_hidden_layers} layers")
    slices = tuple(whole.sliced(depth, dense) for depth in depths)
    if slices[0].moe_layers == 0 and whole.moe_layers:
        raise InputError(
            f"--slice {depths[0]} has no MoE layer: the first {slices[0].dense_layers} layers of {whole.name} are "
            f"dense; take {slices[0].dense_layers + 1} or more, or fewer dense ones with --slice-dense"
        )
    return slices


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SliceLoad:
    """One load of the ladder: lengths in tokens, and clients in a closed loop."""

    isl: int
    osl: int
    clients: int

    @property
    def workload(self) -> Workload:
        return Workload.checked(self.isl, self.osl, self.clients)

    def __str__(self) -> str:
        return f"{self.isl:,}/{self.osl:,} at {self.clients:,} clients"


def loads_of(text: str, flag: str) -> tuple[SliceLoad, ...]:
    """Parse 'ISL/OSL@C1,C2'; an empty text gives no loads. Raises InputError naming the flag."""
    if not text:
        return ()
    match = re.fullmatch(r"(\d+)/(\d+)@(\d+(?:,\d+)*)", text.strip())
    clients = [int(part) for part in match[3].split(",")] if match else []
    if match is None or min(int(match[1]), int(match[2]), *clients) < 1 or max(clients) > MOST_CLIENTS:
        raise InputError(f"{flag} is '{text}'; write input and output tokens and clients, as in {flag} 128/256@1,16,64")
    return tuple(SliceLoad(isl=int(match[1]), osl=int(match[2]), clients=count) for count in clients)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One launch line on one machine: the context of the whole model there, and the resolved flags."""

    context: Context
    words: tuple[str, ...]
    config: ServerConfig

    @property
    def kv_tokens_per_rank(self) -> float:
        """KV tokens that the whole model leaves on a rank; 0 where it does not fit."""
        return float(self.context.memory(table_of([self.config])).kv_tokens_per_rank[0])

    @property
    def kv_tokens(self) -> float:
        return self.kv_tokens_per_rank * self.config.attn_dp_size


def layout_of(context: Context, words: Sequence[str]) -> Layout:
    """Read SGLang's flags for this machine; without --tp they use all of its GPUs.

    Raises InputError for flags that SGLang refuses, and for MTP: made-up weights accept drafts by chance.
    """
    read = read_arguments(words, context.version)
    refused = [fault for fault in read.faults if fault.refused]
    if refused:
        raise InputError(f"SGLang {context.version} refuses a flag: {refused[0].message}; {refused[0].fix}")
    typed = from_values(read.values, context.version)
    if "tp_size" not in read.values:
        nodes = context.machine.nodes
        words = ("--tp-size", str(context.machine.gpu_count), *words)
        typed = replace(typed, tp_size=context.machine.gpu_count, nnodes=nodes)
    if read.values.get("speculative_algorithm"):
        raise InputError("slices run without MTP (dummy weights accept drafts by chance): leave --speculative-* out")
    if typed.gpu_count > context.machine.gpu_count:
        raise InputError(f"the flags ask for {typed.gpu_count} GPUs; {context.machine.name} has fewer")
    config = resolve(typed, context.arch, context.machine, context.version).config
    return Layout(context=context, words=tuple(words), config=config)


def launch_words(layout: Layout, arch: ModelArchitecture, model_path: str, most_kv_tokens: float) -> list[str]:
    """Return the flags that start a slice: the layout's own first, the slice's after them."""
    words = ["--model-path", model_path, "--trust-remote-code", *layout.words]
    if "load_format" not in read_arguments(layout.words, layout.context.version).values:
        words += ["--load-format", "dummy"]
    if math.isfinite(most_kv_tokens) and "--max-total-tokens" not in layout.words:
        words += ["--max-total-tokens", str(int(most_kv_tokens))]
    return [*words, "--json-model-override-args", override_text(arch)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceBoot:
    """One boot of some slices: its number, and the loads that each slice measures `repeats` times."""

    here: Layout
    number: int
    loads: Sequence[SliceLoad]
    repeats: int


def measure_loads(
    boot: SliceBoot, servers: Mapping[ModelArchitecture, Server], shown: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Measure every load on slices that run side by side, taking turns: so that drift cancels.

    Yields point records as they come; an invalid point is measured once more.
    """
    for repeat in range(boot.repeats):
        for load in boot.loads:
            for arch, server in servers.items():
                shown(f"{arch.num_hidden_layers} layers: {load}, repeat {repeat + 1} of {boot.repeats}")
                measured = server.measure(load.workload)
                if measured.verdict is not Verdict.OK:
                    measured = server.measure(load.workload)
                about = _about(boot.here, arch, server.info().kv_tokens)
                yield about | _measured(arch, load, measured, f"{boot.number}.{repeat}")


def _about(layout: Layout, arch: ModelArchitecture, kv_tokens: int) -> dict[str, Any]:
    """Return the machine and launch fields of a point's record, as `calibrate --points` reads them."""
    config = layout.config
    return {
        "metric_kind": "steady",
        "hardware": layout.context.machine.name,
        "engine_version": str(layout.context.version),
        "tp": config.tp_size,
        "attn_dp": config.attn_dp_size,
        "ep": config.ep_size,
        "pp": config.pp_size,
        "max_total_num_tokens": kv_tokens // config.attn_dp_size or None,
        "num_hidden_layers": arch.num_hidden_layers,
        "first_k_dense_replace": arch.first_k_dense_replace,
        "load_format": "dummy",
        "dataset": "random",
        "launch_args": " ".join(layout.words),
    }


def _measured(arch: ModelArchitecture, load: SliceLoad, measured: Measurement, number: str) -> dict[str, Any]:
    """Return the load and the measured figures of a point's record."""
    return {
        "id": f"slice{arch.num_hidden_layers}-{load.isl}-{load.osl}-c{load.clients}-{number}",
        "isl": load.isl,
        "osl": load.osl,
        "concurrency": load.clients,
        "ttft_mean_ms": measured.ttft_ms["mean"],
        "tpot_mean_ms": measured.tpot_ms["mean"],
        "output_tok_s": measured.output_tok_s,
        "output_tok_s_interval": list(measured.output_tok_s_interval),
        "verdict": str(measured.verdict),
        "why": measured.why,
        "role": "primary" if measured.verdict in USABLE else LEFT_OUT,
    }
