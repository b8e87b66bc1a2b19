"""What of a received launch file may be started: nothing that reads, runs or mounts more than it says on its face.

A file's flags and environment are somebody else's words. Those that only say how fast and how large are taken; those
that name files, code or addresses, and environment beyond the allow-list, must be granted on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from hwprobe.errors import InputError
from hwprobe.plain_text import one_line
from planner.sglang.flags import flags_of
from planner.sglang.secret_flags import without_secrets
from tuner.launch_files.verification import Claim

# What sgtune's own exports set, and what tells NCCL and Gloo the way: values, not code.
ENVIRONMENT = frozenset(
    {
        "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
        "NCCL_IB_HCA",
        "NCCL_IB_GID_INDEX",
        "NCCL_DEBUG",
    }
)
# Flags that make a server read, write, import or call something the file names.
REACHES_OUT = re.compile(
    r"config|hook|plugin|path|file|dir|folder|template|url|endpoint|module|package|loader|overrid|extra|import|dump|"
    r"sigquit|logit-processor|remote|storage|connector|linker|corpus|token-map|addr|-ip$|seed-instance|script|class"
)
HARMLESS = frozenset(
    {
        "--model-path", "--trust-remote-code", "--disable-custom-all-reduce", "--enable-profile-cuda-graph",
        "--cuda-graph-config",
    }
)  # fmt: skip
IMAGE = re.compile(r"(docker\.io/)?lmsysorg/sglang(:[\w.-]+)?(@sha256:[0-9a-f]{64})?", re.ASCII)
# What only bounds a container or takes rights from it.
LIMITS = re.compile(
    r"--(?:(?:ulimit|shm-size|memory|memory-swap|cpus|cpuset-cpus|pids-limit)=[\w.:=,-]+|cap-drop=\w+|read-only|init"
    r"|security-opt=no-new-privileges(?:[=:]true)?|cap-add=(?:IPC_LOCK|SYS_NICE)|ipc=(?:private|none))",
    re.ASCII,
)
# Folders that are no model's: mounting one would show a container the machine.
SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/var")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What will be started: SGLang's words and environment, and what of the file's was left out, in sentences."""

    words: tuple[str, ...]
    environment: dict[str, str]
    notes: tuple[str, ...]
    model_path: str

    def shown(self, engine: str, program: str) -> str:
        """Return the start in words, for the one who must say yes; secrets are left out."""
        settings = [f"{name}={one_line(value)}" for name, value in self.environment.items()]
        words = " ".join([*settings, program, *without_secrets(self.words)])
        code = (
            "; --trust-remote-code runs Python that lies with the model" if "--trust-remote-code" in self.words else ""
        )
        return f"on the {engine} engine: {one_line(words, 2000)}{code}"


def trusted_start(claim: Claim, *, allow_env: Sequence[str], model_path: str | None) -> Start:
    """Return what of a claim may be started. Raises InputError naming the flag that must be granted, and how."""
    refused = [word for word in claim.line.words if word.startswith("-") and reaches_out(word, claim.version)]
    if refused:
        raise InputError(
            f"'{claim.file}' gives SGLang {one_line(refused[0])}, which names code, files or addresses of its own: "
            "take it out of the file, and repeat it after `--` if you want it"
        )
    claimed = claim.environment
    granted = {name: value for name, value in claimed.items() if name in ENVIRONMENT or name in allow_env}
    notes = tuple(
        f"{one_line(name)} of the file's environment is left out; --allow-env {one_line(name)} takes it"
        for name in claimed
        if name not in granted
    )
    words = claim.line.words if model_path is None else (*claim.line.words, "--model-path", model_path)
    return Start(words=words, environment=granted, notes=notes, model_path=model_path or claim.model_path)


def reaches_out(word: str, version: Version) -> bool:
    """Whether a flag (or one it may be short for) makes the server read, write, import or call what the file names."""
    name = word.partition("=")[0].replace("_", "-")
    if name in HARMLESS:
        return False
    spellings = [*flags_of(version).spelled(name), name]
    return any(flag not in HARMLESS and REACHES_OUT.search(flag) for flag in spellings)


def trusted_image(claim: Claim, image: str | None) -> str:
    """Return the image to run: the one given, or the file's if it is SGLang's own. Raises InputError otherwise."""
    if image is not None:
        return image
    own_image = claim.line.image
    if own_image is None:
        raise InputError(f"'{claim.file}' names no image; --engine docker needs --image")
    if not IMAGE.fullmatch(own_image):
        raise InputError(
            f"'{claim.file}' names the image {one_line(own_image)}, which is not SGLang's own; to run it, give it with "
            "--image"
        )
    return own_image


def trusted_options(claim: Claim) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what the file asks of docker and may have, and sentences on what it may not.

    Limits and what takes rights away are taken as they stand: a file that cannot start with them must not pass.
    """
    allowed = tuple(option for option in claim.line.options if LIMITS.fullmatch(option))
    notes = tuple(
        f"{one_line(option)} of the file is left out: it gives the container more of this machine than verify does"
        for option in claim.line.options
        if option not in allowed
    )
    return allowed, notes


def mountable(path: str, *, granted: bool) -> str | None:
    """Return the folder a container may see: a model's own, granted on the command line; None for a hub's model.

    Raises InputError for any other.
    """
    if not path.startswith("/"):
        return None
    if not granted:
        raise InputError(f"the file serves the folder {one_line(path)}; to mount it, repeat it with --model-path")
    folder = Path(path).resolve()
    if len(folder.parts) < 3 or str(folder).startswith(tuple(f"{name}/" for name in SYSTEM)):
        raise InputError(f"--model-path is '{path}'; a container is shown no system folder: name the model's own")
    if not (folder / "config.json").is_file():
        raise InputError(f"--model-path is '{path}', which holds no config.json: it is not a model's folder")
    return str(folder)
