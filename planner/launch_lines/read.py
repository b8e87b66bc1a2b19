"""Reads launch lines: a command given as words, or a file - script, manifest, unit, Dockerfile, notes in Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hwprobe.errors import InputError
from hwprobe.files import LAUNCH_FILE_BYTES, read_bytes
from planner.launch_lines.launch_line import LaunchLine, launch_line
from planner.launch_lines.manifest import servers_of_manifest
from planner.launch_lines.platforms import slurm_variables
from planner.launch_lines.servers import MENTION, FoundServer, servers_of_command, servers_of_script
from planner.launch_lines.supervisor import PROGRAM, servers_of_supervisor
from planner.launch_lines.unit import servers_of_unit
from planner.shell.expansion import expand_text
from planner.shell.scope import Scope
from planner.shell.script import Started
from planner.shell.syntax import Word
from planner.shell.values import Text
from planner.shell.words import parts_of_text

FORMS = "`python -m sglang.launch_server ...`, `sglang serve ...`, `docker run ... sglang.launch_server ...`"
# Flags that differ between the nodes of one server.
OF_ONE_NODE = ("--node-rank", "--dist-init-addr", "--nccl-init-addr", "--host")
# Files of a folder that may start servers.
FOLDER_SUFFIXES = (".sh", ".slurm", ".yaml", ".yml", ".service", ".container")
# Where a line given as words ends.
OPERATORS = frozenset({"&&", "||", ";", "|", "&", ">", ">>", "2>&1", "2>", "<", "&>"})
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
_PIN = re.compile(r"(?<![\w-])sglang(?:\[[\w, -]*\])?==(\d+\.\d+\.\d+(?:\.?(?:post|rc)\d+)?)")
_INSTRUCTION = re.compile(r"^\s*(?:CMD|ENTRYPOINT)\s+(.*)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Inputs beyond the file: --set, the caller's environment, and the arguments of a script.

    `unused` collects the names of --set that no launch asked for.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    caller: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] | None = None
    used: set[str] = field(default_factory=set)

    def scope(self) -> Scope:
        """Return the scope a file begins with."""
        positional = None if not self.arguments else [Text(argument) for argument in self.arguments]
        return Scope(given=self.values, caller=self.caller, positional=positional, used=self.used)

    @property
    def unused(self) -> list[str]:
        return [name for name in self.values if name not in self.used]


def launches_of_words(words: Sequence[str], inputs: Given | None = None) -> list[LaunchLine]:
    """Read a command given as words. Raises InputError when no SGLang server is started in it."""
    scope = (inputs or Given()).scope()
    if len(words) == 1 and re.search(r"\s", words[0]) and not words[0].startswith("-"):
        servers = servers_of_script(words[0], scope)
    else:
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
                break
            scope.variables[name] = Text(value)
            scope.exported.add(name)
        cut = next((index for index, word in enumerate(words) if word in OPERATORS), len(words))
        settings = [_argument(word, scope) for word in words[:cut]]
        if words and words[0].startswith("-"):
            settings = [Text("-m"), Text("sglang.launch_server"), *settings]
        servers = list(servers_of_command(Started(words=tuple(settings), line=1, scope=scope)))
    if not servers:
        shown = " ".join(words)[:80]
        raise InputError(f"no SGLang server in '{shown}'; give {FORMS}, or the server's flags alone")
    return [replace(line, pinned_version=_pinned(" ".join(words))) for line in _distinct(servers)]


def _pinned(text: str) -> str | None:
    """Return the release that a text installs, as in `pip install sglang[all]==0.5.9`; None for none or several."""
    rows = (row for row in text.splitlines() if not row.lstrip().startswith(("#", "//")))
    named = {match[1].rstrip(".") for row in rows for match in _PIN.finditer(row)}
    return named.pop() if len(named) == 1 else None


def _argument(word: str, scope: Scope) -> Text:
    """Return one word of a command that a shell has read before, with the variables it still holds."""
    return expand_text(Word(parts_of_text(word, escapable="")), scope)


def launches_of_file(path: Path, inputs: Given | None = None) -> list[LaunchLine]:
    """Read all servers of a file. Raises InputError naming the file where it starts none or cannot be read."""
    data = read_bytes(path, "launch file", most_bytes=LAUNCH_FILE_BYTES)
    text = data.decode("utf-8", errors="replace").removeprefix("\ufeff").replace("\0", "")
    scope = (inputs or Given()).scope()
    suffix = path.suffix.lower()
    if suffix in (".service", ".container"):
        servers = servers_of_unit(text, Scope(given=scope.given, used=scope.used))
    elif suffix in (".yaml", ".yml", ".json") or path.name.endswith((".yaml.j2", ".yml.j2", ".yaml.tpl")):
        servers = servers_of_manifest(text, _with_env_file(scope, path, text), name=str(path))
    elif suffix in (".md", ".markdown", ".rst"):
        servers = _of_notes(text, scope)
    elif path.name.lower().startswith(("dockerfile", "containerfile")) or suffix == ".dockerfile":
        servers = _of_dockerfile(text, Scope(given=scope.given, used=scope.used))
    else:
        servers = _of_script(text, scope)
    if not servers:
        raise InputError(f"'{path}' starts no SGLang server that could be found; it should hold {FORMS}")
    return [replace(line, pinned_version=_pinned(text)) for line in _distinct(servers)]


def launches_of_folder(folder: Path, inputs: Given | None = None) -> list[LaunchLine]:
    """Read all servers of a folder's scripts, manifests and units, each once. Raises InputError where it has none."""
    lines: dict[tuple[str, ...], LaunchLine] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix in FOLDER_SUFFIXES and path.is_file()):
        try:
            file_lines = launches_of_file(path, inputs)
        except InputError:
            continue  # data beside the launch files, or the router's script
        for line in file_lines:
            lines.setdefault(tuple(sorted(_groups_of(_common(line.words)))), line)
    if not lines:
        raise InputError(f"'{folder}' holds no file that starts a SGLang server: {', '.join(FOLDER_SUFFIXES)} are read")
    return list(lines.values())


def _groups_of(words: Sequence[str]) -> list[str]:
    """Return flags with their values, so that two forms of one command compare equal."""
    groups: list[str] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append(word)
        else:
            groups[-1] += f" {word}"
    return groups


def launch_of_words(words: Sequence[str]) -> LaunchLine:
    """Read the first server of a command. Raises InputError when none is started in it."""
    return launches_of_words(words)[0]


def launch_of_file(path: Path) -> LaunchLine:
    """Read the first server of a file. Raises InputError naming the file where it starts none."""
    return launches_of_file(path)[0]


def _distinct(servers: Sequence[FoundServer]) -> list[LaunchLine]:
    """Return the launch lines, one for each server: nodes of one server differ in rank and address alone."""
    lines: dict[tuple[str, ...], LaunchLine] = {}
    listed = sorted((launch_line(server) for server in servers), key=lambda line: line.line)
    with_flags = [line for line in listed if line.words or line.unknown or line.left_out] or listed
    for line in with_flags:
        lines.setdefault((*_common(line.words), *(u.flag + u.text for u in line.unknown)), line)
    return list(lines.values())


def _common(words: Sequence[str]) -> list[str]:
    shared_words: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in OF_ONE_NODE:
            skip = True
        elif word.partition("=")[0] not in OF_ONE_NODE:
            shared_words.append(word)
    return shared_words


def _of_script(text: str, scope: Scope) -> list[FoundServer]:
    if PROGRAM.search(text):
        return servers_of_supervisor(text, scope)
    scope.variables |= slurm_variables(text)
    stripped = text.strip()
    if stripped.startswith("-") and not stripped.startswith("---"):
        return servers_of_script("python -m sglang.launch_server " + stripped, scope)
    servers = servers_of_script(text, scope)
    if servers or not re.search(r"^\s*(?:apiVersion|services|kind|[\w-]*model[-_]path)\s*:", text, re.MULTILINE):
        return servers
    return servers_of_manifest(text, scope)


def _of_notes(text: str, scope: Scope) -> list[FoundServer]:
    """Read the code blocks of a Markdown text; each may be a script of its own."""
    servers: list[FoundServer] = []
    for match in _FENCE.finditer(text):
        if MENTION.search(match[1]):
            line = text.count("\n", 0, match.start(1)) + 1
            servers += servers_of_script(re.sub(r"^\s*\$ ", "", match[1], flags=re.MULTILINE), scope.copy(), line)
    return servers or servers_of_script(text, scope)


def _of_dockerfile(text: str, scope: Scope) -> list[FoundServer]:
    """Read ENTRYPOINT and CMD: a JSON list as words, anything else as a script; ENV counts, FROM names the image."""
    rows = re.sub(r"\\[ \t]*\r?\n", " ", text).splitlines()
    image, words, line = None, [], 1
    for number, row in enumerate(rows, start=1):
        keyword, _, rest = row.strip().partition(" ")
        if keyword.upper() == "FROM":
            image = rest.split()[0] if rest.split() else None
        elif keyword.upper() in ("ENV", "ARG"):
            name, _equals, value = rest.strip().partition("=") if "=" in rest else rest.strip().partition(" ")
            scope.variables[name.strip()] = Text(value.strip().strip("\"'"))
            scope.exported.add(name.strip())
        elif _INSTRUCTION.match(row):
            words += _instruction_words(rest.strip())
            line = number
    started = Started(words=tuple(Text(word) for word in words), line=line, scope=scope)
    return [replace(server, image=server.image or image) for server in servers_of_command(started)]


def _instruction_words(text: str) -> list[str]:
    try:
        listed = json.loads(text) if text.startswith("[") else None
    except ValueError:
        listed = None
    return [str(item) for item in listed] if isinstance(listed, list) else ["sh", "-c", text]


def _with_env_file(scope: Scope, path: Path, text: str) -> Scope:
    """Add the .env file that compose reads beside its own file."""
    beside = path.parent / ".env"
    if not re.search(r"^services\s*:", text, re.MULTILINE) or not beside.is_file():
        return scope
    rows = read_bytes(beside, ".env file", most_bytes=LAUNCH_FILE_BYTES).decode("utf-8", errors="replace").splitlines()
    pairs = (row.partition("=") for row in rows if "=" in row and not row.lstrip().startswith("#"))
    environment = {name.strip().removeprefix("export "): value.strip().strip("\"'") for name, _, value in pairs}
    return Scope(given=scope.given, caller={**environment, **scope.caller}, used=scope.used)
