"""Launched: the configuration a running server has, from what it says of itself, and the model's view of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from packaging.version import Version

from hwprobe.catalogue import gpu_keys, hardware_from_catalogue
from hwprobe.errors import InputError, UnsupportedModel
from hwprobe.plain_text import one_line
from hwprobe.profile import HardwareProfile
from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.costs.memory import Memory, memory
from models.engine.profile import EngineProfile
from models.engine.transfer import profile_on
from models.layout import table_of
from models.machine import machine_of
from models.serving.estimate import Context, acceptance_of
from models.version import parse_version
from planner.check.judge import Checked, judge, modelled, read_launch
from planner.launch_lines.checkpoint import served_model
from planner.sglang.arguments import Arguments
from planner.sglang.dialects import from_values
from planner.sglang.flags import Flag, flags_of
from planner.sglang.secret_flags import without_secrets
from tuner.scrape.source import Facts
from tuner.server.ask import count, items, mapping, number

DEFAULT_HARDWARE = "h200"
MOST_WORDS = 20_000
LONGEST_VALUE = 500
# What a server resolves for itself and says beside what was typed: not part of the launch.
NOT_TYPED = frozenset({"served_model_name", "tokenizer_path", "nccl_port", "random_seed", "load_balance_method"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A server's configuration as launched, and the machine. `kv_tokens` is what its pool holds, over all ranks.

    `assumed` says what was taken without being known; `spoken` that the pool's size is the server's own word.
    """

    version: Version
    checked: Checked
    context: Context
    hardware: HardwareProfile
    kv_tokens: float
    spoken: bool
    model: str
    assumed: tuple[str, ...] = ()

    @property
    def config(self) -> ServerConfig:
        """The resolved configuration, as the model takes it."""
        return modelled(self.checked.resolved.config)

    @property
    def typed(self) -> ServerConfig:
        return self.checked.typed

    def memory(self, config: ServerConfig) -> Memory:
        """Return the ledger of a configuration on this machine, as far off as the running one's ledger is."""
        filled = self.context.memory(table_of([config]))
        own = self.context.memory(table_of([self.config]))
        off = self.kv_tokens / max(1.0, float(self.config.attn_dp_size)) - float(own.kv_tokens_per_rank[0])
        cell = float(own.kv_cell[0]) / max(1e-12, float(filled.kv_cell[0]))
        per_rank = max(0.0, float(filled.kv_tokens_per_rank[0]) + off * cell)
        limit = float(table_of([config]).max_total_tokens[0])
        tokens = np.array([min(per_rank, limit)])
        return replace(filled, kv_tokens_per_rank=tokens, kv_tokens=tokens * config.attn_dp_size)


class NotModelled(InputError):
    """The model has no figures for this server; the text says why."""


# What the resolver and the ledger raise for values that no launch has.
IMPOSSIBLE = (ValueError, TypeError, OverflowError, ZeroDivisionError, KeyError)


def launched(facts: Facts, hardware: HardwareProfile | None, engine: EngineProfile | None) -> Launched:
    """Read a server's configuration. Raises NotModelled where nothing can be predicted for it."""
    try:
        return _launched(facts, hardware, engine)
    except IMPOSSIBLE as error:
        raise NotModelled(f"what it says of its launch makes none: {one_line(str(error), 100)}") from error


def _launched(facts: Facts, hardware: HardwareProfile | None, engine: EngineProfile | None) -> Launched:
    version = _version(facts)
    assumed: list[str] = []
    arguments = _arguments(facts, version, assumed)
    if str(arguments.values.get("device") or "cuda") not in ("cuda", "None"):
        raise NotModelled(f"it runs on --device {one_line(str(arguments.values['device']))}: the model knows GPUs")
    if str(arguments.values.get("disaggregation_mode") or "null") != "null":
        raise NotModelled("it is a prefill or decode server: it serves only together with its other half")
    try:
        served = served_model(arguments.values, None)
    except UnsupportedModel as error:
        raise NotModelled(str(error)) from error
    typed = from_values(arguments.values, version)
    if hardware is None:
        hardware = _hardware(facts, typed, served.arch, assumed)
    machine = machine_of(hardware)
    profile = engine or profile_on(hardware, version)
    context = Context(
        arch=served.arch, machine=machine, engine=profile, version=version, acceptance=acceptance_of(profile)
    )
    checked = judge(typed, served.arch, machine, version).typed_as(arguments)
    settled = modelled(checked.resolved.config)
    own = context.memory(table_of([settled]))
    stated_tokens = count(facts.info.get("max_total_num_tokens"))
    ranks = max(1, settled.attn_dp_size)
    tokens = float(stated_tokens * ranks if stated_tokens else own.kv_tokens[0])
    return Launched(
        version=version, checked=checked, context=replace(context, machine=machine), hardware=hardware,
        kv_tokens=tokens, spoken=bool(stated_tokens), model=served.arch.name, assumed=tuple(assumed),
    )  # fmt: skip


def _version(facts: Facts) -> Version:
    text = str(facts.info.get("version") or facts.loads.get("version") or "")
    if not text:
        from models.version import NEWEST

        return parse_version(NEWEST)
    try:
        return parse_version(text.partition("+")[0].partition(".dev")[0])
    except InputError as error:
        raise NotModelled(f"its release '{one_line(text, 40)}' is none that is known") from error


def _arguments(facts: Facts, version: Version, assumed: list[str]) -> Arguments:
    """Return what was typed: the line as given here or told by the server, else what its arguments differ in."""
    if facts.words is not None:
        return read_launch(without_secrets(facts.words), version)
    command = facts.info.get("launch_command")
    if isinstance(command, str) and command.strip():
        try:
            words = shlex.split(command[:MOST_WORDS])
        except ValueError:
            words = []
        arguments = read_launch(without_secrets(_flags_only(words)), version) if words else None
        if arguments is not None and not any(fault.refused for fault in arguments.faults):
            return arguments
    if not facts.info:
        raise NotModelled(
            "its configuration is unknown: it has no /server_info; give the launch line's flags after `--`"
        )
    assumed.append("the launch line: from what /server_info says differs from SGLang's defaults")
    return Arguments(values=_values(facts.info, version), faults=())


def _flags_only(words: list[str]) -> list[str]:
    """Return the words from the first flag on."""
    first = next((number for number, word in enumerate(words) if word.startswith("-") and word != "-m"), 0)
    rest = words[first:]
    return rest[2:] if rest[:1] == ["-m"] else rest


def _values(info: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """Return the arguments that a server says and that are not its release's defaults."""
    values: dict[str, Any] = {}
    for dest, flag in flags_of(version).by_dest.items():
        value = info.get(dest)
        if dest in info and dest not in NOT_TYPED and value not in (None, False, flag.default) and _fits(flag, value):
            values[dest] = value
    ranks = values.get("attn_dp_size", 1) if not info.get("enable_dp_attention") else info.get("dp_size", 1)
    ranks = max(count(ranks) or 1, count(info.get("attn_dp_size")) or 1)
    chunk = count(values.get("chunked_prefill_size"))
    if ranks > 1 and chunk:
        values["chunked_prefill_size"] = chunk * ranks  # the resolver divides it among the ranks
    graphs = mapping(mapping(info.get("cuda_graph_config")).get("decode"))
    if "cuda_graph_max_bs_decode" not in values and (most := count(graphs.get("max_bs"))):
        values["cuda_graph_max_bs_decode"] = most
    return values


def _fits(flag: Flag, value: Any) -> bool:
    """Whether a value is of the flag's kind: what a server says is its own."""
    if flag.is_switch:
        return isinstance(value, bool)
    kind = str(flag.type or "").lower()
    if "float" in kind:
        return number(value) is not None
    if "int" in kind:
        return isinstance(value, int) and number(value) is not None
    return isinstance(value, str) and len(value) < LONGEST_VALUE and (not flag.choices or value in flag.choices)


def _hardware(facts: Facts, typed: ServerConfig, arch: ModelArchitecture, assumed: list[str]) -> HardwareProfile:
    """Return the machine the server names, or so many H200 as it uses.

    Cards that share a name (H20 with 96 and with 141 GB) are told apart by the KV pool the server has.
    """
    name = str(facts.loads.get("accelerator") or next(iter(items(facts.info.get("devices"))), {}).get("name") or "")
    model = re.sub(r"[^a-z0-9]+", " ", name[:200].lower()).split()
    keys = [key for key in gpu_keys() if key.split("-", maxsplit=1)[0] in model]
    nodes = max(1, typed.nnodes)
    count_of_node = max(1, typed.tp_size * typed.pp_size // nodes)
    if not keys:
        assumed_name = f"{DEFAULT_HARDWARE}x{count_of_node}"
        named = f"it names '{one_line(name, 60)}'" if name else "it names none"
        assumed.append(f"the machine: {assumed_name} ({named}); say it with --hardware")
    try:
        machines = [
            hardware_from_catalogue(f"{f'{nodes}x' if nodes > 1 else ''}{key}x{count_of_node}")
            for key in keys or [DEFAULT_HARDWARE]
        ]
    except InputError as error:
        raise NotModelled(str(error)) from error
    stated_tokens = count(facts.info.get("max_total_num_tokens"))
    if len(machines) == 1 or not stated_tokens:
        return machines[0]
    return min(machines, key=lambda each: abs(_pool(each, typed, arch, _version(facts)) - stated_tokens))


def _pool(hardware: HardwareProfile, typed: ServerConfig, arch: ModelArchitecture, version: Version) -> float:
    """Return the KV tokens of a rank by the ledger of a machine."""
    machine = machine_of(hardware)
    config = modelled(judge(typed, arch, machine, version).resolved.config)
    return float(memory(arch, machine, table_of([config]), version).kv_tokens_per_rank[0])
