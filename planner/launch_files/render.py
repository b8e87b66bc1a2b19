"""The text of every launch file, from the templates beside this module. jinja2 is loaded when a file is made."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from hwprobe.errors import InputError
from planner.fleets.deployment import RECOVERY_FLAGS
from planner.launch import DIST_PORT, LaunchSpec
from planner.launch_files.parameters import CACHE_IN_CONTAINER, NAME, Parameters, Provenance, ready_path
from planner.launch_files.production import KEY_SECRET, KEY_VARIABLE
from planner.launch_files.record import record_line
from planner.launch_files.targets import Target, check_target
from planner.sglang.unit_words import exec_quote, unit_quote

if TYPE_CHECKING:
    from jinja2 import Environment

# Flags whose value is a name, even where it looks like a number.
TEXT_FLAGS = ("--model-path", "--host", "--served-model-name")
ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
MARKDOWN = re.compile(r"[\\`*_{}\[\]()#+!|~>:]")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
OPEN_NOTE = "the server is open to the network: add --api-key (from a secret) to its arguments to keep others out"
# POSIX sh, the folder is $0: a folder that lacks a shard would be noticed only after minutes of loading.
WEIGHTS_CHECK = (
    'cd -- "$0" && { [ ! -f model.safetensors.index.json ] || '
    "for shard in $(grep -o '[^\"]*[.]safetensors' model.safetensors.index.json | sort -u); "
    'do [ -s "$shard" ] || { echo "error: the weights are not complete: $shard is missing or empty" >&2; exit 1; }; '
    "done; }"
)
EVERYWHERE = ("0.0.0.0", "::", "")


def render(target: Target, spec: LaunchSpec, parameters: Parameters, provenance: Provenance) -> str:
    """Return the launch file of a target. Raises InputError when the target cannot say this command."""
    check_target(target, spec, parameters)
    if not target.record.has_template:
        return _yaml_file(spec, provenance)
    template = f"{target.file_name}.j2"
    return _environment().get_template(template).render(_values(target, spec, parameters, provenance))


def render_readme(spec: LaunchSpec, parameters: Parameters, provenance: Provenance, targets: list[Target]) -> str:
    """Return the README of a bundle."""
    values = _values(Target.BASH, spec, parameters, provenance)
    return _environment().get_template("README.md.j2").render(values, targets=[str(target) for target in targets])


def template_text(name: str, values: dict[str, Any]) -> str:
    """Return a template of this room filled with values."""
    return _environment().get_template(name).render(values)


def fleet_values(target: Target, spec: LaunchSpec, parameters: Parameters, provenance: Provenance) -> dict[str, Any]:
    """Return what a template may use for a server of a fleet, which listens on its node's own address.

    Raises InputError for a setting whose name is not a valid one.
    """
    return _values(target, spec, parameters, provenance) | {
        "own_address": True,
        "words": without_host(spec.words),
        "open": parameters.production.api_key_file is None,
    }


def without_host(words: Sequence[list[str]]) -> list[list[str]]:
    """Return the flags of a server whose address is known only where it starts."""
    return [flag for flag in words if flag[0] != "--host"]


def _values(target: Target, spec: LaunchSpec, parameters: Parameters, provenance: Provenance) -> dict[str, Any]:
    """Return what the templates may use; quoting is left to their filters.

    Raises InputError for a setting whose name is not a valid one.
    """
    # A pod is reached under its own address, which is unknown before it runs.
    own_address = target is Target.K8S and any(
        flag == ["--host", loopback] for flag in spec.words for loopback in LOOPBACK
    )
    for name in spec.environment:
        if not ENVIRONMENT_NAME.fullmatch(name):
            raise InputError(f"{name!r} is not a valid name of an environment variable")
    production = parameters.production
    ready = ready_path(spec, key=production.api_key_file is not None)
    return {
        "head": head_lines(provenance),
        "production": production,
        "key_variable": KEY_VARIABLE,
        "key_secret": KEY_SECRET,
        "simulated": provenance.simulated,
        "words": without_host(spec.words) if own_address else spec.words,
        "own_address": own_address,
        "open": (own_address or parameters.host not in LOOPBACK) and production.api_key_file is None,
        "open_note": OPEN_NOTE,
        "settings": list((spec.environment | _surroundings(target, parameters)).items()),
        "parameters": parameters,
        "image": parameters.image_of(spec.version),
        "version": str(spec.version),
        "nnodes": spec.nnodes,
        "gpus": spec.gpus_per_node,
        "dist_port": DIST_PORT,
        "ready": ready,
        "ready_url": f"http://{own_host(parameters.host)}:{parameters.port}{ready}",
        "volumes": _volumes(parameters),
        "weights_check": None if parameters.hub_model else WEIGHTS_CHECK,
        "cache_is_name": bool(NAME.fullmatch(parameters.cache)),
    }


def _surroundings(target: Target, parameters: Parameters) -> dict[str, str]:
    """Return where compiled kernels and downloads go; a plain process keeps SGLang's own places."""
    if target.record.in_container:
        hub = {"HF_HOME": parameters.weights_target} if parameters.hub_model else {}
        return {"SGLANG_CACHE_DIR": CACHE_IN_CONTAINER, **hub}
    cache = target.record.kernel_cache(parameters)
    return {} if cache is None else {"SGLANG_CACHE_DIR": cache}


def _volumes(parameters: Parameters) -> list[dict[str, Any]]:
    """Return the two volumes of a container: the weights, read-only unless they are downloads, and the kernel cache."""
    return [
        {
            "name": "weights",
            "source": parameters.weights_source,
            "target": parameters.weights_target,
            "named": bool(NAME.fullmatch(parameters.weights_source)),
            "read_only": not parameters.hub_model,
        },
        {
            "name": "cache",
            "source": parameters.cache,
            "target": CACHE_IN_CONTAINER,
            "named": bool(NAME.fullmatch(parameters.cache)),
            "read_only": False,
        },
    ]


def own_host(host: str) -> str:
    """Return the address under which the machine reaches its own server."""
    return "127.0.0.1" if host in EVERYWHERE else f"[{host}]" if ":" in host else host


def head_lines(provenance: Provenance) -> list[str]:
    """Return the provenance as comment lines that nothing in them can end."""
    lines = [f"# {one_line(name)}: {one_line(value)}" for name, value in provenance.lines]
    return lines if provenance.record is None else [*lines, record_line(provenance.record)]


def one_line(value: str) -> str:
    """Make a text safe for a comment: one line, nothing a reader of the file would refuse."""
    printable = "".join(c if c.isprintable() else " " for c in value)
    return " ".join(printable.split()).rstrip("\\ ")  # a systemd comment goes on after a backslash


def _yaml_file(spec: LaunchSpec, provenance: Provenance) -> str:
    """Return SGLang's own `--config` file."""
    node = f" --node-rank RANK --dist-init-addr RANK0_HOST:{DIST_PORT}" if spec.nnodes > 1 else ""
    lines = [*head_lines(provenance), "# start: python3 -m sglang.launch_server --config FILE" + node]
    lines += [f"# environment: {name}={one_line(value)}" for name, value in spec.environment.items()]
    body: dict[str, Any] = {}
    for flag, *values in spec.words:
        yaml_values = [_yaml_value(flag, value) for value in values]
        body[flag.removeprefix("--")] = (
            True if not yaml_values else yaml_values[0] if len(yaml_values) == 1 else yaml_values
        )
    return "\n".join(lines) + "\n" + yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=1000)


def _yaml_value(flag: str, value: str) -> int | float | str:
    """Return the value a YAML reader should get: numbers as numbers where they read the same again."""
    if flag in TEXT_FLAGS:
        return value
    for number in (int, float):
        try:
            if str(number(value)) == value:
                return number(value)
        except ValueError:
            continue
    return value


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("planner", "launch_files/templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # nothing here is HTML; every value goes through the filter of its target
    )
    templates.globals["recovery"] = [word for flag in RECOVERY_FLAGS for word in flag]
    filters: dict[str, Callable[..., str]] = {
        "sh": lambda value: shlex.quote(str(value)),
        "yaml": yaml_quote,
        "dollars": lambda value: str(value).replace("$", "$$"),
        "exec": exec_quote,
        "unit": unit_quote,
        "mount": mount_option,
        "host_path": host_path,
        "md": markdown,
        "oneline": one_line,
    }
    templates.filters |= filters
    return templates


def markdown(value: str) -> str:
    """Return a text that Markdown shows as it stands: no link, no picture, no HTML."""
    return MARKDOWN.sub(r"\\\g<0>", one_line(str(value)).replace("&", "&amp;").replace("<", "&lt;"))


def yaml_quote(value: str) -> str:
    """Return a text as one double-quoted YAML scalar on one line."""
    quoted: str = yaml.safe_dump(str(value), default_style='"', allow_unicode=True, width=float("inf"))
    return quoted.removesuffix("\n")


def mount_option(volume: dict[str, Any]) -> str:
    """Return docker's --mount value, which is a line of CSV."""
    fields = ["type=volume" if volume["named"] else "type=bind", f"source={volume['source']}"]
    fields += [f"target={volume['target']}", *(["readonly"] if volume["read_only"] else [])]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def host_path(volume: dict[str, Any]) -> str:
    """Return the folder of a Kubernetes node that holds a volume."""
    return f"/var/lib/sglang/{volume['source']}" if volume["named"] else str(volume["source"])
