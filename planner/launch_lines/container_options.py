"""What a file asks of a container's runtime beside image and command, in one spelling: `--name=value` of docker run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

RUNTIMES = ("docker", "podman", "nerdctl")
PROGRAM = re.compile(r"python[\d.]*|bash|sh")
# Options that decide whether a container starts and how it runs; what it is called, mounts and sets is read elsewhere.
VALUED = (
    "ulimit", "shm-size", "ipc", "memory", "memory-swap", "cpus", "cpuset-cpus", "pids-limit", "security-opt",
    "cap-add", "cap-drop", "device", "user", "group-add", "runtime", "pid", "entrypoint", "tmpfs", "oom-score-adj",
)  # fmt: skip
SWITCHES = ("privileged", "read-only", "init")
SHORT = {"-m": "memory", "-u": "user", "-c": "cpu-shares"}
# compose's own names for them, lists first.
LISTS = {
    "security_opt": "security-opt", "cap_add": "cap-add", "cap_drop": "cap-drop", "devices": "device",
    "group_add": "group-add",
}  # fmt: skip
VALUES = {
    "shm_size": "shm-size", "ipc": "ipc", "mem_limit": "memory", "memswap_limit": "memory-swap", "cpus": "cpus",
    "cpuset": "cpuset-cpus", "pids_limit": "pids-limit", "user": "user", "runtime": "runtime", "pid": "pid",
    "oom_score_adj": "oom-score-adj",
}  # fmt: skip
FLAGS = {"privileged": "privileged", "read_only": "read-only", "init": "init"}


def options_of_run(words: Sequence[str]) -> tuple[str, ...]:
    """Return the options of `docker run` among the words before a server; none where no container is started."""
    start = next((i for i, word in enumerate(words) if PurePosixPath(word).name in RUNTIMES), None)
    return () if start is None else tuple(_options(words[start + 1 :]))


def _options(words: Sequence[str]) -> Iterator[str]:
    following = iter(words)
    for word in following:
        if PROGRAM.fullmatch(PurePosixPath(word).name):
            return  # the image's own command begins
        name, equals, value = word.partition("=")
        plain = SHORT.get(name) or name.removeprefix("--")
        if name.startswith("--") and plain in SWITCHES:
            if value != "false":
                yield f"--{plain}"
        elif plain in VALUED and (name.startswith("--") or name in SHORT):
            yield f"--{plain}={value if equals else next(following, '')}"


def options_of_service(service: Mapping[Any, Any]) -> tuple[str, ...]:
    """Return the same of a compose service."""
    return tuple(_of_service(service))


def _of_service(service: Mapping[Any, Any]) -> Iterator[str]:
    limits = service.get("ulimits")
    for name, limit in limits.items() if isinstance(limits, dict) else ():
        both = isinstance(limit, dict)
        yield f"--ulimit={name}=" + (f"{limit.get('soft')}:{limit.get('hard')}" if both else str(limit))
    for key, option in VALUES.items():
        if service.get(key) is not None:
            yield f"--{option}={service[key]}"
    for key, option in LISTS.items():
        values = service.get(key)
        for value in values if isinstance(values, list) else ():
            yield f"--{option}={value}"
    for key, option in FLAGS.items():
        if service.get(key) is True:
            yield f"--{option}"
