"""LaunchSpec: the command that starts SGLang with a configuration, and the environment it needs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from packaging.version import Version

from models.config import ServerConfig
from planner.plans.space import as_launched
from planner.rules import DEEPEP_TOKENS_PER_RANK
from planner.sglang.dialects import TypedFlag, to_flags

DEFAULT_MODEL_PATH = "deepseek-ai/DeepSeek-R1"
DIST_PORT = 20000


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What to run, flag by flag. Node rank and rank-0 address of several nodes are left to the launcher."""

    version: Version
    model_path: str
    flags: tuple[TypedFlag, ...]
    environment: dict[str, str] = field(default_factory=dict)
    nnodes: int = 1
    gpus_per_node: int = 1

    @property
    def words(self) -> list[list[str]]:
        """Return every flag with its values."""
        return [flag.argv for flag in self.flags]

    def argv(self, python: str = "python3") -> list[str]:
        """Return the argument list of one node (without --node-rank and --dist-init-addr)."""
        return [python, "-m", "sglang.launch_server", *(word for words in self.words for word in words)]

    def with_words(self, words: Sequence[str]) -> LaunchSpec:
        """Return the command with further flags at its end, as typed; the last of two wins."""
        added: list[TypedFlag] = []
        for word in words:
            name, equals, value = word.partition("=")
            if re.match(r"--?[A-Za-z]", word):
                added.append(TypedFlag(name, (value,) if equals else ()))
            elif added:
                added[-1] = TypedFlag(added[-1].name, (*added[-1].values, word))
        return replace(self, flags=(*self.flags, *added))

    def shell_line(self) -> str:
        """Return the command as one line for a shell, where NODE_RANK and RANK0_HOST are set on several nodes."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        nodes = [f'--node-rank "$NODE_RANK" --dist-init-addr "$RANK0_HOST:{DIST_PORT}"'] if self.nnodes > 1 else []
        return " ".join([*settings, shlex.join(self.argv()), *nodes])


def launch_spec(
    config: ServerConfig,
    version: Version,
    *,
    model_path: str = DEFAULT_MODEL_PATH,
    host: str = "0.0.0.0",
    port: int = 30000,
) -> LaunchSpec:
    """Build the command of a resolved configuration. Raises InputError for what the version cannot say."""
    return typed_launch_spec(as_launched(config, version), version, model_path=model_path, host=host, port=port)


def typed_launch_spec(
    typed: ServerConfig,
    version: Version,
    *,
    model_path: str = DEFAULT_MODEL_PATH,
    host: str = "0.0.0.0",
    port: int = 30000,
) -> LaunchSpec:
    """Build the command of a configuration as it was typed: every flag as it stands, nothing resolved or undone.

    Raises InputError for what the version cannot say.
    """
    flags = (
        TypedFlag("--model-path", (model_path,)),
        TypedFlag("--trust-remote-code"),
        *to_flags(typed, version),
        TypedFlag("--host", (host,)),
        TypedFlag("--port", (str(port),)),
    )
    return LaunchSpec(
        version=version,
        model_path=model_path,
        flags=flags,
        environment=_environment(typed),
        nnodes=typed.nnodes,
        gpus_per_node=typed.gpu_count // typed.nnodes,
    )


def _environment(config: ServerConfig) -> dict[str, str]:
    """DeepEP's low-latency buffer holds 128 tokens per rank unless told otherwise (rule deepep-buffer)."""
    if config.moe_a2a_backend != "deepep":
        return {}
    per_request = config.speculative.num_draft_tokens if config.speculative else 1
    tokens = -(-(config.max_running_requests or 0) // config.attn_dp_size) * per_request
    if tokens <= DEEPEP_TOKENS_PER_RANK:
        return {}
    return {"SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK": str(tokens)}
