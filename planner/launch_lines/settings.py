"""SGLang's settings as a mapping: its own --config file, and the recipes that hold such a mapping further down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwprobe.errors import InputError
from hwprobe.files import LAUNCH_FILE_BYTES, read_bytes
from hwprobe.parsing import load_yaml
from planner.sglang.flags import flags_by_name

# One of these, and mostly flags beside it, makes a mapping SGLang's settings.
TELLING = frozenset({"--tp-size", "--tensor-parallel-size", "--model-path", "--mem-fraction-static"})
LEAST_SHARE = 0.7


def is_settings(node: dict[Any, Any]) -> bool:
    """Return whether a mapping's keys are SGLang's flags."""
    names = [flag_of(key) for key in node]
    flags = [name for name in names if name in flags_by_name()]
    return bool(TELLING & set(names)) and len(flags) >= LEAST_SHARE * len(names)


def flag_of(key: Any) -> str:
    """Return a setting's flag: `tp_size`, `tp-size` and a chart's `tpSize` are --tp-size."""
    plain = re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "-" + match[1].lower(), str(key).strip().removeprefix("--"))
    return "--" + plain.replace("_", "-")


def words_of_settings(settings: dict[Any, Any]) -> list[str]:
    """Return SGLang's --config YAML as arguments, as SGLang's own merger does."""
    words: list[str] = []
    for key, value in settings.items():
        flag = flag_of(key)
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [flag, *(str(item) for item in value)]
        elif value is not False and value is not None and not isinstance(value, dict):
            words += [flag, str(value)]
    return words


def with_config_file(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Put the values of SGLang's `--config FILE` before the other words, as SGLang does; also return its faults."""
    listed = list(words)
    places = [index for index, word in enumerate(listed) if word == "--config"]
    if not places:
        return listed, []
    first = places[0]
    if len(places) > 1 or first + 1 == len(listed):
        return listed[:first], ["--config is given more than once" if len(places) > 1 else "--config names no file"]
    name, rest = listed[first + 1], listed[:first] + listed[first + 2 :]
    try:
        text = read_bytes(Path(name), "--config file", most_bytes=LAUNCH_FILE_BYTES).decode("utf-8", errors="replace")
        config = next(iter(load_yaml(text, name)), None) or {}
    except InputError as error:
        return rest, [f"the file of --config cannot be read: {error}"]
    if not isinstance(config, dict) or Path(name).suffix.lower() not in (".yaml", ".yml"):
        return rest, ["the file of --config is not a YAML mapping"]
    return words_of_settings(config) + rest, []
