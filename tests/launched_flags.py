"""What a launch line says of its configuration, in the release's own words."""

from __future__ import annotations

from packaging.version import Version

from planner.launch_lines.read import OF_ONE_NODE
from planner.sglang.arguments import read_arguments
from planner.sglang.dialects import from_values, to_argv

LAUNCH = {
    "model_path", "trust_remote_code", "port", "enable_metrics", "reasoning_parser", "served_model_name",
    *(flag.removeprefix("--").replace("-", "_") for flag in OF_ONE_NODE),
}  # fmt: skip


def flags_of(words: list[str], version: Version) -> list[str]:
    """Return a launch line's planned flags: what a configuration says, in the release's words.

    Model, address, a node's own rank, and what production asks for belong to the launch, not to the configuration.
    """
    values = read_arguments(words, version).values
    return to_argv(from_values({name: value for name, value in values.items() if name not in LAUNCH}, version), version)
