"""Render a LaunchSpec into files. Every file says where its figures come from."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from hwprobe.errors import InputError
from hwprobe.files import write_atomic
from models.version import at_least
from planner.dialects import CONFIG_FILE
from planner.launch import DIST_PORT, LaunchSpec

# Flags whose value is a name, even where it looks like a number.
TEXT_FLAGS = ("--model-path", "--host")


class Target(StrEnum):
    """What can be exported."""

    BASH = "bash"
    YAML = "yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an exported file comes from: (name, value) lines, one per fact."""

    lines: tuple[tuple[str, str], ...]


def export_files(
    spec: LaunchSpec, provenance: Provenance, folder: Path, targets: Sequence[Target] = tuple(Target)
) -> list[Path]:
    """Write the files of the given targets and return their paths.

    Raises InputError when a target does not exist in this SGLang version or the folder is not writable.
    """
    written = []
    for target in targets:
        name, render, executable = _RENDERERS[target]
        path = folder / name
        write_atomic(path, render(spec, provenance), executable=executable)
        written.append(path)
    return written


def possible_targets(spec: LaunchSpec) -> list[Target]:
    """Return the targets this SGLang version understands."""
    return [t for t in Target if t != Target.YAML or at_least(spec.version, CONFIG_FILE)]


def render_bash(spec: LaunchSpec, provenance: Provenance) -> str:
    """Return a shell script that starts one node; several nodes run the same file."""
    template = files("planner").joinpath("export/templates/launch.sh.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string(template).render(
        provenance=[(name, _one_line(value)) for name, value in provenance.lines],
        settings=[(name, shlex.quote(value)) for name, value in spec.environment.items()],
        model_path=shlex.quote(spec.model_path),
        flags=[" ".join([flag, *([shlex.quote(value)] if value is not None else [])]) for flag, value in _own(spec)],
        nnodes=spec.nnodes,
        dist_port=DIST_PORT,
    )


def render_yaml(spec: LaunchSpec, provenance: Provenance) -> str:
    """Return SGLang's `--config` file. Raises InputError for versions without that flag."""
    if not at_least(spec.version, CONFIG_FILE):
        raise InputError(
            f"SGLang {spec.version} has no --config file (it came with {CONFIG_FILE}); export --target bash instead"
        )
    head = [f"# {name}: {_one_line(value)}" for name, value in provenance.lines]
    head.append("# start: python3 -m sglang.launch_server --config FILE" + _node_flags(spec))
    if spec.environment:
        head += [f"# environment: {name}={value}" for name, value in spec.environment.items()]
    body = {flag.removeprefix("--"): _yaml_value(flag, value) for flag, value in spec.flags}
    return "\n".join(head) + "\n" + yaml.safe_dump(body, sort_keys=False, width=1000)


def _node_flags(spec: LaunchSpec) -> str:
    return f" --node-rank RANK --dist-init-addr RANK0_HOST:{DIST_PORT}" if spec.nnodes > 1 else ""


def _own(spec: LaunchSpec) -> list[tuple[str, str | None]]:
    """Return the flags without the model path, which the script keeps in a variable."""
    return [(flag, value) for flag, value in spec.flags if flag != "--model-path"]


def _yaml_value(flag: str, value: str | None) -> bool | int | float | str:
    """Return the value a YAML reader should get: switches as true, numbers as numbers, names as text."""
    if value is None:
        return True
    if flag in TEXT_FLAGS:
        return value
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value


def _one_line(value: str) -> str:
    """Make a text safe for a comment: one line, nothing a reader of the file would refuse."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


_Renderer = Callable[[LaunchSpec, Provenance], str]
_RENDERERS: dict[Target, tuple[str, _Renderer, bool]] = {
    Target.BASH: ("launch.sh", render_bash, True),
    Target.YAML: ("sglang.yaml", render_yaml, False),
}
