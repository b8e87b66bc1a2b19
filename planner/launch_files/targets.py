"""Every export target in one record: its file, its language, and what it cannot express. A new target is one record
here, one template beside this module and one golden file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from hwprobe.errors import InputError
from models.version import at_least
from planner.launch import LaunchSpec
from planner.launch_files.parameters import NAME, Parameters
from planner.sglang.dialects import CONFIG_FILE

KernelCache = Callable[[Parameters], str | None]
Objection = Callable[[LaunchSpec, Parameters], str | None]


class Target(StrEnum):
    """What can be exported, by the name that --target takes."""

    BASH = "bash"
    YAML = "yaml"
    DOCKER = "docker"
    COMPOSE = "compose"
    SYSTEMD = "systemd"
    K8S = "k8s"
    SLURM = "slurm"

    @property
    def record(self) -> TargetRecord:
        """All that is known of this target."""
        return RECORDS[self]

    @property
    def file_name(self) -> str:
        """The file it is written to."""
        return self.record.file_name


def _own_place(parameters: Parameters) -> str | None:
    """A plain process keeps SGLang's own cache unless a folder is given."""
    return None if NAME.fullmatch(parameters.cache) else parameters.cache


def _service_cache(parameters: Parameters) -> str | None:
    return _own_place(parameters) or f"/var/cache/{parameters.cache}"


def _nothing(_spec: LaunchSpec, _parameters: Parameters) -> str | None:
    return None


def _paths(parameters: Parameters) -> tuple[str, ...]:
    return (parameters.weights_source, parameters.weights_target, parameters.cache)


def _no_config_file(spec: LaunchSpec, _parameters: Parameters) -> str | None:
    if at_least(spec.version, CONFIG_FILE):
        return None
    return f"SGLang {spec.version} has no --config file (it came with {CONFIG_FILE}); export --target bash instead"


def _no_line_break(_spec: LaunchSpec, parameters: Parameters) -> str | None:
    if any("\r" in path or "\n" in path for path in _paths(parameters)):
        return "docker mounts no path that holds a line break; name another --model-path or volume"
    return None


def _no_colon(_spec: LaunchSpec, parameters: Parameters) -> str | None:
    if any(":" in path for path in _paths(parameters)):
        return "Kubernetes mounts no path that holds ':'; name another --model-path or volume"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRecord:
    """One target. The template is named after the file; without one the file is SGLang's own YAML.

    `language` is an editor's syntax name; `kernel_cache` is where a plain process keeps compiled kernels (None:
    SGLang's own place; containers have a volume); `objection` returns why the target cannot express a command, None if
    it can.
    """

    file_name: str
    language: str = "bash"
    executable: bool = False
    in_container: bool = False
    has_template: bool = True
    kernel_cache: KernelCache = _own_place
    objection: Objection = _nothing


RECORDS: dict[Target, TargetRecord] = {
    Target.BASH: TargetRecord(file_name="launch.sh", executable=True),
    Target.YAML: TargetRecord(file_name="sglang.yaml", language="yaml", has_template=False, objection=_no_config_file),
    Target.DOCKER: TargetRecord(
        file_name="docker-run.sh", executable=True, in_container=True, objection=_no_line_break
    ),
    Target.COMPOSE: TargetRecord(
        file_name="compose.yaml", language="yaml", in_container=True, objection=_no_line_break
    ),
    Target.SYSTEMD: TargetRecord(file_name="sglang.service", language="ini", kernel_cache=_service_cache),
    Target.K8S: TargetRecord(file_name="kubernetes.yaml", language="yaml", in_container=True, objection=_no_colon),
    Target.SLURM: TargetRecord(file_name="slurm.sh", executable=True),
}


def check_target(target: Target, spec: LaunchSpec, parameters: Parameters) -> None:
    """Raise InputError when the target cannot say this command, naming the one that can."""
    objection = target.record.objection(spec, parameters)
    if objection:
        raise InputError(objection)


def possible_targets(spec: LaunchSpec, parameters: Parameters) -> list[Target]:
    """Return the targets that can say this command."""
    return [target for target in Target if target.record.objection(spec, parameters) is None]
