"""Reads the `launch_args` of a point record: SGLang's flags as typed, read once for all points of a sweep."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

from packaging.version import Version

from models.config import ServerConfig
from planner.sglang.arguments import read_arguments
from planner.sglang.dialects import from_values


@cache
def flags_of_model(launch_args: str, version: Version) -> dict[str, Any]:
    """Return the flags that say what is served. Sweeps share theirs."""
    names = ("model_path", "quantization", "dtype", "load_format", "torchao_config", "served_model_name",
             "json_model_override_args")  # fmt: skip
    values = read_arguments(_server_words(launch_args), version).values
    return {name: values[name] for name in names if name in values}


@cache
def flags_given(launch_args: str, version: Version) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what flags set, by field of ServerConfig, and what SGLang would refuse of them."""
    read = read_arguments(_server_words(launch_args), version)
    flagged = from_values(read.values, version)
    settings = {
        item.name: getattr(flagged, item.name)
        for item in fields(ServerConfig)
        if getattr(flagged, item.name) != item.default
    }
    return settings, tuple(f"launch_args: {fault.message}; ignored" for fault in read.faults if fault.refused)


def _server_words(launch_args: str) -> list[str]:
    """Return the server's flags: what follows the environment and the command that starts it."""
    words = launch_args.split()
    start = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    return words[start:]
