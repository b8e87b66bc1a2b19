"""`--space FILE`: a TOML file that narrows, fixes or extends what the tuner may vary.

flags = ["--enable-two-batch-overlap"]      # for every launch, verbatim

[space]
layout = ["tp8", "tp8-dp8"]                 # a list: only these
mtp_steps = 0                               # a value: fixed
mem_fraction_static = ["default", 0.95]     # other values than the built-in ones are welcome
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hwprobe.errors import InputError, did_you_mean
from hwprobe.files import LAUNCH_FILE_BYTES, read_bytes
from hwprobe.parsing import load_toml
from planner.plans.alternatives import DEFAULT, UNMODELLED, Choice
from planner.sglang.flags import flags_of
from tuner.search.space import CLIENTS, CORE, TuningSpace

LARGEST_MTP = 7
NAMES = (*CORE, *UNMODELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceFile:
    """Values by parameter, and SGLang flags for every launch."""

    name: str
    choices: dict[str, tuple[Choice, ...]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def narrow(self, space: TuningSpace) -> TuningSpace:
        """Return the space with this file's choices. Raises InputError for a layout this machine does not have."""
        layouts = list(space.layouts)
        for layout in self.choices.get("layout", ()):
            if layout not in layouts:
                raise InputError(
                    f"{self.name}: space.layout has '{layout}', which is not possible here; "
                    f"{did_you_mean(str(layout), layouts)}"
                )
        known_flags = flags_of(space.context.version).by_dest
        for name in UNMODELLED:
            for value in self.choices.get(name, ()):
                flag = known_flags.get(name)
                if value == DEFAULT or (flag is not None and (not flag.choices or value in flag.choices)):
                    continue
                if name == "attention_backend" and value in space.choices[name]:
                    continue  # 0.4.3 spells it otherwise
                raise InputError(
                    f"{self.name}: space.{name} has {value!r}, which SGLang {space.context.version} does not know"
                    + (f"; it knows {', '.join(map(str, flag.choices))}" if flag is not None and flag.choices else "")
                )
        return replace(space, choices={**space.choices, **self.choices}, named=frozenset(self.choices))


def read_space_file(path: Path) -> SpaceFile:
    """Read a space file. Raises InputError naming the key that is wrong."""
    data = load_toml(read_bytes(path, "space", most_bytes=LAUNCH_FILE_BYTES), str(path))
    for key in data:
        if key not in ("space", "flags"):
            raise InputError(f"{path}: unknown key '{key}'; {did_you_mean(key, ['space', 'flags'])}")
    flags, table = data.get("flags", []), data.get("space", {})
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise InputError(f'{path}: flags must be a list of texts, as in flags = ["--attention-backend", "fa3"]')
    if not isinstance(table, dict):
        raise InputError(f"{path}: space must be a table, as in [space]")
    choices = {name: _choices(path, name, value) for name, value in table.items()}
    return SpaceFile(name=str(path), choices=choices, flags=tuple(flags))


def _choices(path: Path, name: str, value: Any) -> tuple[Choice, ...]:
    if name not in NAMES:
        raise InputError(f"{path}: unknown parameter space.{name}; {did_you_mean(name, list(NAMES))}")
    values = value if isinstance(value, list) else [value]
    for choice in values:
        if not _possible(name, choice):
            raise InputError(f"{path}: space.{name} has {choice!r}; {_EXPECTED[name]}")
    if not values or len(set(values)) != len(values):
        raise InputError(f"{path}: space.{name} needs at least one value, and none twice")
    return tuple(values)


_EXPECTED = {
    "layout": "a layout is a text, as the first column of sgtune tune --dry-run shows them",
    "mtp_steps": f"a whole number from 0 (MTP off) to {LARGEST_MTP} is expected",
    "mem_fraction_static": f"'{DEFAULT}' or a number between 0.05 and 0.99 is expected",
    "chunked_prefill_size": f"'{DEFAULT}' or a whole number of tokens from 16 is expected",
    "cuda_graph": f"'{DEFAULT}' (SGLang's sizes) or '{CLIENTS}' (just enough) is expected",
    "max_running": f"'{DEFAULT}' (SGLang's limit), '{CLIENTS}' (just enough) or a number of requests is expected",
    "moe_runner_backend": f"'{DEFAULT}' or the name of a backend is expected",
    "attention_backend": f"'{DEFAULT}' or the name of a backend is expected",
    "kv_cache_dtype": f"'{DEFAULT}' or the name of a type is expected",
    "page_size": f"'{DEFAULT}' or a whole number of tokens from 1 is expected",
    "scheduler_recv_interval": f"'{DEFAULT}' or a whole number of steps from 1 is expected",
    "stream_interval": f"'{DEFAULT}' or a whole number of tokens from 1 is expected",
    "schedule_conservativeness": f"'{DEFAULT}' or a number from 0.01 to 10 is expected",
    "enable_mixed_chunk": f"'{DEFAULT}' (off) or true is expected",
    "disable_radix_cache": f"'{DEFAULT}' (the cache is on) or true is expected",
}
TEXTS = ("moe_runner_backend", "attention_backend", "kv_cache_dtype")
COUNTS = ("page_size", "scheduler_recv_interval", "stream_interval")
SWITCHES = ("enable_mixed_chunk", "disable_radix_cache")


def _possible(name: str, value: Any) -> bool:
    if name in SWITCHES:
        return value is True or value == DEFAULT
    if isinstance(value, bool):
        return False
    if name == "layout" or name in TEXTS:
        return isinstance(value, str)
    if name == "mtp_steps":
        return isinstance(value, int) and 0 <= value <= LARGEST_MTP
    if value == DEFAULT:
        return True
    if name == "mem_fraction_static":
        return isinstance(value, float) and 0.05 <= value <= 0.99
    if name == "schedule_conservativeness":
        return isinstance(value, int | float) and 0.01 <= value <= 10.0
    if name == "chunked_prefill_size" or name in COUNTS:
        return isinstance(value, int) and value >= (1 if name in COUNTS else 16)
    if name == "max_running" and isinstance(value, int):
        return value >= 1
    return bool(value == CLIENTS)
