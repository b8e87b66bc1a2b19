"""Finds the SGLang servers among the commands of a script: behind docker, srun, bash -c, in here-documents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from planner.launch_lines.container_options import options_of_run
from planner.shell.scope import Scope
from planner.shell.script import Started, commands_of_script
from planner.shell.values import Text

# What starts a server, and whose own flags it takes beside SGLang's.
MODULES = {
    "sglang.launch_server": "",
    "sglang.srt.entrypoints.http_server": "",
    "sglang_router.launch_server": "sglang_router",
    "dynamo.sglang": "Dynamo",
    "dynamo.sglang.worker": "Dynamo",
    "dynamo.sglang.decode_worker": "Dynamo",
}
MENTION = re.compile(
    r"sglang\.launch_server|sglang/launch_server|launch_server\.py|http_server|sglang_router\.launch_server|"
    r"dynamo\.sglang|\bsglang\s+serve\b"
)
_MANIFEST = re.compile(r"^\s*(?:apiVersion|services|kind)\s*:", re.MULTILINE)
# Commands that speak of a server and start none.
_TALKERS = frozenset({
    "echo", "printf", "grep", "egrep", "pgrep", "pkill", "ps", "kill", "killall", "awk", "sed", "logger", "which",
    "type", "pip", "help", "man", "history", "watch", "wget", "curl", "git",
})  # fmt: skip
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
DEEPEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundServer:
    """A server's arguments as they stand, what they could see, and the words before them.

    `kind` names whose module it is where it is not SGLang's own; `image` the container's image, if one was named, and
    `options` what is asked of its runtime, as `--name=value` of docker run.
    """

    arguments: tuple[Text, ...]
    scope: Scope
    line: int
    kind: str = ""
    image: str | None = None
    options: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    role: str | None = None


def servers_of_script(text: str, scope: Scope, line: int = 1) -> list[FoundServer]:
    """Return the servers a script starts. Where none is started, those that it only writes or prints count."""
    commands = commands_of_script(text, scope, line)
    for talkers in (False, True):
        servers = [server for command in commands for server in servers_of_command(command, talkers=talkers)]
        if servers:
            return _with_torn_off(servers, commands)
    return []


def servers_of_command(command: Started, depth: int = 0, *, talkers: bool = False) -> Iterator[FoundServer]:
    """Yield the servers in one command and in its here-documents; `talkers`: also in commands that only print."""
    words = command.words
    name = PurePosixPath(words[0].raw).name if words else ""
    if words and (talkers or name not in _TALKERS):
        yield from _in_words(command, depth, talkers=talkers)
    for text, line in command.texts:
        if MENTION.search(text.source):
            yield from _in_text(text.source, command.scope, line, depth, talkers=talkers)


def _nested(text: str, scope: Scope, line: int, depth: int, *, talkers: bool) -> list[FoundServer]:
    """Return the servers of a script inside a script."""
    if depth >= DEEPEST:
        return []
    commands = commands_of_script(text, scope, line)
    same = [command for command in commands if [word.source for word in command.words] == [text]]
    inside = [command for command in commands if command not in same] if same else commands
    servers = [server for command in inside for server in servers_of_command(command, depth + 1, talkers=talkers)]
    return _with_torn_off(servers, commands)


def _in_text(text: str, scope: Scope, line: int, depth: int, *, talkers: bool) -> Iterator[FoundServer]:
    servers = _nested(text, scope.copy(), line, depth, talkers=talkers)
    if servers or not _MANIFEST.search(text):
        yield from servers
        return
    from planner.launch_lines.manifest import servers_of_manifest

    yield from servers_of_manifest(text, scope.copy(), line)


def _in_words(command: Started, depth: int, *, talkers: bool) -> Iterator[FoundServer]:
    words = command.words
    for index, word in enumerate(words):
        before = words[index - 1].raw if index else ""
        kind, arguments = _server_at(words, index, before)
        if arguments is not None:
            yield FoundServer(
                arguments=tuple(arguments), scope=_inside(command, words[:index]), line=command.line,
                kind=kind, image=_image_before(words[:index]), options=_options_before(words[:index]),
                notes=command.notes,
            )  # fmt: skip
            return
        if MENTION.search(word.source) and re.search(r"\s", word.source):
            inner = _inside(command, words[:index])
            servers = _nested(word.source, inner, command.line, depth, talkers=talkers)
            image, options = _image_before(words[:index]), _options_before(words[:index])
            for server in servers:
                outer = server.image or image is None
                yield server if outer else replace(server, image=image, options=(*options, *server.options))
            if servers:
                return


def _server_at(words: Sequence[Text], index: int, before: str) -> tuple[str, Sequence[Text] | None]:
    """Return whose server starts at a word, and its arguments; None where none does."""
    text = words[index].raw
    if text in MODULES and before == "-m":
        return MODULES[text], words[index + 1 :]
    if text.endswith("launch_server.py") and (PurePosixPath(before).name.startswith("python") or "sglang" in text):
        return "", words[index + 1 :]
    if text == "serve" and PurePosixPath(before).name == "sglang":
        rest = words[index + 1 :]
        named = bool(rest) and not rest[0].raw.startswith("-")
        return "", [Text("--model-path"), *rest] if named else rest
    return "", None


def _inside(command: Started, before: Sequence[Text]) -> Scope:
    """Return what the server sees: settings before the program, and docker's -e and --env, too."""
    scope = command.scope.copy()
    leading = True
    for index, word in enumerate(before):
        text, previous = word.raw, before[index - 1].raw if index else ""
        setting = (leading and _SETTING.fullmatch(text)) or previous in ("-e", "--env")
        leading = leading and (bool(setting) or text in ("env", "sudo", "nohup", "exec", "time"))
        plain = text.removeprefix("--env=").removeprefix("--env ").removeprefix("-e=")
        if (setting or plain != text) and _SETTING.fullmatch(plain):
            name, _, value = plain.partition("=")
            scope.variables[name] = Text(value, word.assumed)
            scope.exported.add(name)
    return scope


def _image_before(words: Sequence[Text]) -> str | None:
    """Return the image of `docker run`, podman, enroot or srun --container-image among the words before the server."""
    for index, word in enumerate(words):
        named = re.match(r"--container-image[= ](.+)", word.source)
        if named is not None:
            return named[1]
        if word.raw == "--container-image" and index + 1 < len(words):
            return words[index + 1].source
    if not any(word.raw in ("run", "exec", "create") for word in words):
        return None
    candidates = [word.source for word in words if IMAGE.fullmatch(word.source)]
    return candidates[-1] if candidates else None


def _options_before(words: Sequence[Text]) -> tuple[str, ...]:
    return options_of_run([word.raw if word.known else word.source for word in words])


IMAGE = re.compile(r"(?:[\w.-]+(?::\d+)?/)*[\w.-]*(?:sglang|sgl-dev)[\w.-]*(?::[\w.${}:-]+)?(?:@sha256:\w+)?")


def _with_torn_off(servers: list[FoundServer], commands: Sequence[Started]) -> list[FoundServer]:
    """Say of flags that stand alone after a server that the shell does not give them to it."""
    torn = [command for command in commands if command.words and re.match(r"--[a-z]", command.words[0].raw)]
    if not servers or not torn:
        return servers
    note = f"line {torn[0].line}: '{torn[0].words[0].source}' stands alone: a comment or a missing backslash cut it off"
    return [replace(servers[0], notes=(*servers[0].notes, note)), *servers[1:]]
