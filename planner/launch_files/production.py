"""A production server's settings beyond its configuration: metrics, names, a key, room on its node."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.version import Version

from hwprobe.errors import InputError
from planner.sglang.flags import flags_of

# What --api-key-file becomes where a platform hands secrets over by itself.
KEY_VARIABLE = "SGLANG_API_KEY"
KEY_SECRET = "sglang"
# Tokenizing, detokenizing and scheduling take a few cores a rank; loading takes the page cache.
CPUS_PER_GPU = 8
MEMORY_GIB = 128
TIME_LIMIT = "1-00:00:00"
NO_PARSER = "none"
R1_NAME = re.compile(r"deepseek-?r1", re.IGNORECASE)
USER = re.compile(r"[a-z_][a-z0-9_-]*\$?", re.ASCII)
SLURM_TIME = re.compile(r"(?:\d+-)?\d{1,3}(?::\d{2}){0,2}|UNLIMITED", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """Settings of operation; they change no measured figure.

    `metrics`: serve Prometheus' /metrics. `served_name`: the model's name in the API, by default its path.
    `reasoning_parser`: separates reasoning from the answer ("none": keeps it in the text). `api_key_file`: read at
    start by scripts; compose and systemd take SGLANG_API_KEY from their environment files, Kubernetes from the key
    `api-key` of the secret `sglang`. `user`: the systemd service's user, by default one of its own. `cpus_per_gpu`,
    `memory_gib` and `time_limit` are requested from Slurm and Kubernetes.
    """

    metrics: bool = True
    served_name: str | None = None
    reasoning_parser: str | None = None
    api_key_file: str | None = None
    user: str | None = None
    cpus_per_gpu: int = CPUS_PER_GPU
    memory_gib: int = MEMORY_GIB
    time_limit: str = TIME_LIMIT

    def checked(self) -> Production:
        """Raise InputError naming the option whose value no file could hold; return it otherwise."""
        for option, text in (
            ("--served-model-name", self.served_name), ("--reasoning-parser", self.reasoning_parser),
            ("--api-key-file", self.api_key_file),
        ):  # fmt: skip
            if text is not None and (not text or text.startswith("-") or not text.isprintable()):
                raise InputError(f"{option} is {text!r}; it must be one line of text that does not begin with '-'")
        if self.user is not None and not USER.fullmatch(self.user):
            raise InputError(f"--user is {self.user!r}; give the name of a user of the machine")
        if not SLURM_TIME.fullmatch(self.time_limit):
            raise InputError(f"--time-limit is {self.time_limit!r}; write it as Slurm does: 7-00:00:00 or UNLIMITED")
        for option, number, most in (
            ("--cpus-per-gpu", self.cpus_per_gpu, 256),
            ("--memory-gib", self.memory_gib, 8192),
        ):
            if not 1 <= number <= most:
                raise InputError(f"{option} is {number}; it must be between 1 and {most:,}")
        return self

    def parser_for(self, model: str) -> str | None:
        """Return the reasoning parser of a model, None for none: R1's own, where no other is named.

        Other models of the family answer without reasoning, or as the request says: R1's parser would take their
        whole answer for reasoning.
        """
        named = self.reasoning_parser or ("deepseek-r1" if R1_NAME.search(model) else NO_PARSER)
        return None if named == NO_PARSER else named

    def words(self, version: Version, model: str) -> list[str]:
        """Return the flags that the release knows of those asked for, for a model of this name."""
        release_flags = flags_of(version).by_name
        flags = ["--enable-metrics"] if self.metrics and "--enable-metrics" in release_flags else []
        if self.served_name is not None:
            flags += ["--served-model-name", self.served_name]
        parser = self.parser_for(model)
        if parser is not None and "--reasoning-parser" in release_flags:
            flags += ["--reasoning-parser", parser]
        return flags
