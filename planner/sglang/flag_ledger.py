"""What sgtune makes of each flag of SGLang: priced, judged, harmless or unpriced (flag_ledger.toml)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any

from packaging.version import Version

from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.machine import Machine
from models.unpriced import Unpriced
from planner.sglang.flags import Flag, flags_of
from planner.sglang.resolver import resolve

# All-to-all backends under which the MoE runner `auto` is DeepGEMM on Hopper; elsewhere there it is Triton.
DEEP_GEMM_A2A = ("deepep", "mooncake", "nixl")


class FlagClass(StrEnum):
    """How the answers take account of a flag."""

    PRICED = "priced"
    JUDGED = "judged"
    HARMLESS = "harmless"
    UNPRICED = "unpriced"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagEntry:
    """One flag's line in the ledger; the last four belong to unpriced flags alone.

    `unless` are values whose effect the equations have, `without` a flag that makes this one priced.
    """

    kind: FlagClass
    changes: str = ""
    effect: str = ""
    unless: tuple[Any, ...] = ()
    without: str | None = None


@cache
def flag_ledger() -> dict[str, FlagEntry]:
    """Return the entry of every flag, by SGLang's field name."""
    written = tomllib.loads(files("planner").joinpath("sglang/flag_ledger.toml").read_text(encoding="utf-8"))
    entries = {
        name: FlagEntry(kind=kind)
        for kind in (FlagClass.PRICED, FlagClass.JUDGED, FlagClass.HARMLESS)
        for name in written[kind]["flags"]
    }
    for group in written["unpriced"]:
        entry = FlagEntry(
            kind=FlagClass.UNPRICED,
            changes=group["changes"],
            effect=group["effect"],
            unless=tuple(group.get("unless", ())),
            without=group.get("without"),
        )
        entries |= dict.fromkeys(group["flags"], entry)
    return entries


def unpriced_flags(
    values: Mapping[str, Any], typed: ServerConfig, arch: ModelArchitecture, machine: Machine, version: Version
) -> tuple[Unpriced, ...]:
    """Return the flags of a launch that no equation has, in the order typed.

    `values` are what was typed by SGLang's field names, `typed` the configuration read from them.
    """
    candidates = list(_candidates(values, version))
    if not candidates:
        return ()
    own = _own_choice(typed, arch, machine, version)
    return tuple(
        Unpriced(flag=_spelled(flag), value=value, changes=entry.changes, effect=entry.effect)
        for flag, entry, value in candidates
        if value != own.get(flag.dest, flag.default)
    )


def _candidates(values: Mapping[str, Any], version: Version) -> Iterator[tuple[Flag, FlagEntry, Any]]:
    ledger, flags = flag_ledger(), flags_of(version).by_dest
    for dest, value in values.items():
        entry = ledger.get(dest)
        if entry is None or entry.kind is not FlagClass.UNPRICED or dest not in flags:
            continue
        if value in entry.unless or value is False or (entry.without is not None and values.get(entry.without)):
            continue
        yield flags[dest], entry, value


def _own_choice(typed: ServerConfig, arch: ModelArchitecture, machine: Machine, version: Version) -> dict[str, Any]:
    """Return SGLang's own choice by GPU and layout: typing the same changes nothing."""
    bare = replace(typed, attention_backend=None, moe_runner_backend=None)
    bare = bare.with_flags(prefill_attention_backend=None, decode_attention_backend=None)
    fields = resolve(bare, arch, machine, version).fields
    attention, runner = fields["attention_backend"], fields["moe_runner_backend"]
    if runner == "auto" and machine.is_hopper:  # layers/quantization/fp8.py
        runner = "deep_gemm" if fields["moe_a2a_backend"] in DEEP_GEMM_A2A else "triton"
    phases = dict.fromkeys(("prefill_attention_backend", "decode_attention_backend"), attention)
    return {"attention_backend": attention, "moe_runner_backend": runner, **phases}


def _spelled(flag: Flag) -> str:
    return next((name for name in flag.names if name == "--" + flag.dest.replace("_", "-")), flag.name)
