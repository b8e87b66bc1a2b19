"""Finds the SGLang server and its arguments in whatever starts it: a command, a script, compose or Kubernetes YAML."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hwprobe.errors import InputError
from hwprobe.files import read_bytes
from planner.assumption import Assumption
from planner.sglang.shell_words import LITERAL, OPERATORS, commands_of, literal, plain
from planner.sglang.unit_words import assignments_of, unit_words

MODULE = "sglang.launch_server"
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
NAME = r"[A-Za-z_][A-Za-z0-9_]*"
VARIABLE = re.compile(rf"(?<!\0)\$(?:{{({NAME})[^}}]*}}|\(({NAME})\)|({NAME}))")
IMAGE_VERSION = re.compile(r"sglang[^\s:]*:v?(?P<version>\d+\.\d+\.\d+(?:\.post\d+)?)")
SHELLS = ("bash", "sh", "/bin/bash", "/bin/sh", "zsh")
PASSED_ON = ("$@", "$*")
FORMS = "`python -m sglang.launch_server ...`, `sglang serve ...`, `docker run ... sglang.launch_server ...`"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchLine:
    """The server's arguments, its environment settings, the image it runs in and the release that names, if any.

    `left_out` are flags whose value is a variable unknown here.
    """

    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    image: str | None = None
    image_version: str | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    assumed: tuple[Assumption, ...] = ()


def launch_of_words(words: Sequence[str]) -> LaunchLine:
    """Read a command given as words. Raises InputError when no SGLang server is started in it."""
    found = _from_words(list(words), {})
    if found is None:
        shown = " ".join(words)[:80]
        raise InputError(f"no SGLang server in '{shown}'; give {FORMS}, or the server's flags alone")
    return found


def launch_of_file(path: Path) -> LaunchLine:
    """Read a script, a compose file, a Kubernetes manifest or a systemd unit. Raises InputError naming the file."""
    text = read_bytes(path, "launch file").decode("utf-8", errors="replace")
    is_yaml = path.suffix.lower() in (".yaml", ".yml", ".json")
    if path.suffix.lower() == ".service":
        found = _from_unit(text)
    else:
        found = _from_yaml(text, path) if is_yaml else _from_script(text)
    if found is None:
        raise InputError(f"'{path}' starts no SGLang server that could be found; it should hold {FORMS}")
    return found


def _from_words(words: list[str], environment: dict[str, str]) -> LaunchLine | None:
    """Find the server among words: after its module or `sglang serve`, or all of them when they are flags."""
    environment = environment | _settings(words)
    image = next((match["version"] for word in words if (match := IMAGE_VERSION.search(word))), None)
    for index, word in enumerate(words):
        if word == MODULE or word.endswith(("sglang/launch_server.py", "launch_server.py")):
            found = _line(words[index + 1 :], environment, image)
            in_docker = index >= 3 and "run" in words[:index] and words[index - 1] == "-m"
            return replace(found, image=plain(words[index - 3])) if in_docker else found
        if word == "serve" and index and Path(words[index - 1]).name == "sglang":
            return _line(_model_first(words[index + 1 :]), environment, image)
        if MODULE in word and (" " in word or "\n" in word):
            inner = _from_script(plain(word), environment)
            if inner is not None:
                return replace(inner, image_version=inner.image_version or image)
    if words and words[0].startswith("-"):
        return _line(words, environment, image)
    return None


def _line(words: list[str], environment: dict[str, str], image: str | None) -> LaunchLine:
    """Cut the shell's part off, put known variables in, and leave flags out whose value nobody knows here."""
    kept: list[str] = []
    left_out: list[str] = []
    for word in words:
        if word in OPERATORS:
            break
        if word in PASSED_ON:
            continue
        text = VARIABLE.sub(lambda match: _value(match, environment), word)
        if not VARIABLE.search(text):
            kept.append(text)
        elif kept and kept[-1].startswith("--") and "=" not in kept[-1]:
            left_out.append(f"{kept.pop()} {word}")
        else:
            left_out.append(word)
    notes = tuple(f"'{text[:80]}' is left out: the variable's value is unknown here" for text in left_out)
    flags = tuple(text.split()[0].partition("=")[0] for text in left_out)
    return LaunchLine(
        words=tuple(plain(word) for word in kept),
        environment={name: plain(value) for name, value in environment.items()},
        image_version=image,
        notes=notes,
        left_out=flags,
    )


def _value(match: re.Match[str], environment: dict[str, str]) -> str:
    """Return a variable's value from the launch's own environment, or the variable as it stands."""
    return {"LWS_WORKER_INDEX": "0", **environment}.get(match[match.lastindex or 0], match[0])


def _model_first(words: list[str]) -> list[str]:
    """`sglang serve MODEL` takes the model as a plain word; the module takes it as a flag."""
    return ["--model-path", *words] if words and not words[0].startswith("-") else words


def _settings(words: Sequence[str]) -> dict[str, str]:
    """Return NAME=VALUE words before the program and those of docker's -e and --env."""
    found: dict[str, str] = {}
    leading = True
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        wanted = (leading and ASSIGNMENT.fullmatch(word)) or before in ("-e", "--env")
        leading = leading and (bool(wanted) or word in ("env", "export", "sudo"))
        text = word.removeprefix("--env=")
        if (wanted or text != word) and "=" in text:
            name, _, value = text.partition("=")
            found[name] = value
        if word == MODULE:
            break
    return found


def _from_script(text: str, environment: dict[str, str] | None = None) -> LaunchLine | None:
    """Find the first command of a shell script that starts the server; exports before it count."""
    settings = dict(environment or {})
    for words in commands_of(text):
        if words[0] == "export" or all(ASSIGNMENT.fullmatch(word) for word in words):
            settings |= {name: value for name, _, value in (w.partition("=") for w in words if "=" in w)}
            continue
        if len(words) > 2 and words[-2] == "||" and ASSIGNMENT.fullmatch(words[-1]):  # a default
            name, _, value = words[-1].partition("=")
            settings[name] = value
            continue
        found = _from_words(words, settings) if not words[0].startswith("-") else None
        if found is not None:
            return found
    whole = re.sub(r"\\\r?\n", " ", text).strip()
    return _from_words(shlex.split(whole), settings) if whole.startswith("-") and whole.count('"') % 2 == 0 else None


def _from_unit(text: str) -> LaunchLine | None:
    """Find the server among a systemd unit's ExecStart= lines; its Environment= counts."""
    settings: dict[str, str] = {}
    commands: list[list[str]] = []
    for key, value in assignments_of(text):
        if key == "Environment":
            pairs = (word.partition("=") for word in unit_words(value, command=False))
            settings |= {name: setting.replace("$", LITERAL + "$") for name, _, setting in pairs}
        elif key == "ExecStart":
            commands.append([literal(word) for word in unit_words(value, command=True)])
    return next((found for words in commands if (found := _from_words(words, settings)) is not None), None)


def _from_yaml(text: str, path: Path) -> LaunchLine | None:
    """Find the container that starts the server in any YAML document, or SGLang's own --config form."""
    import yaml  # late: most launches come without YAML, and it takes its time

    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise InputError(f"'{path}' is no valid YAML: {str(error).splitlines()[0]}") from None
    for container in (c for document in documents for c in _containers(_plain_dollars(document))):
        words = [
            *_listed(container.get("entrypoint")),
            *_listed(container.get("command")),
            *_listed(container.get("args")),
        ]
        found = _from_words(words, _environment(container)) if words else None
        if found is not None and not (words[0].startswith("-") and "sglang" not in str(container.get("image"))):
            match = IMAGE_VERSION.search(str(container.get("image")))
            version = found.image_version or (match["version"] if match else None)
            image = container.get("image")
            return replace(found, image=None if image is None else str(image), image_version=version)
    for document in documents:
        if isinstance(document, dict) and {"model-path", "model_path", "tp-size", "tp_size"} & set(map(str, document)):
            return LaunchLine(words=tuple(words_of_config(document)))
    return None


def with_config_file(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Put the values of SGLang's `--config FILE` before the other words, as SGLang does; also what is wrong with it."""
    import yaml

    listed = list(words)
    places = [index for index, word in enumerate(listed) if word == "--config"]
    if not places:
        return listed, []
    first = places[0]
    if len(places) > 1 or first + 1 == len(listed):
        return listed[:first], ["--config is given more than once" if len(places) > 1 else "--config names no file"]
    name, rest = listed[first + 1], listed[:first] + listed[first + 2 :]
    try:
        config = yaml.safe_load(Path(name).read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        return rest, [f"the file of --config cannot be read: {str(error).splitlines()[0]}"]
    if not isinstance(config, dict) or Path(name).suffix.lower() not in (".yaml", ".yml"):
        return rest, ["the file of --config is no YAML mapping"]
    return words_of_config(config) + rest, []


def words_of_config(config: dict[Any, Any]) -> list[str]:
    """Return SGLang's --config YAML as arguments, as SGLang's own merger does."""
    words: list[str] = []
    for key, value in config.items():
        flag = "--" + str(key).replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [flag, *(str(item) for item in value)]
        elif value is not False and value is not None:
            words += [flag, str(value)]
    return words


def _plain_dollars(document: Any) -> Any:
    """Mark the dollars that compose (`services`) and Kubernetes (`apiVersion`) pass on as they are.

    Both double a dollar that is no variable. Without a shell, Kubernetes knows only the form $(NAME).
    """
    if not isinstance(document, dict) or not {"services", "apiVersion"} & document.keys():
        return document
    return _marked(document, single="apiVersion" in document)


def _marked(node: Any, *, single: bool) -> Any:
    if isinstance(node, dict):
        return {key: _marked(value, single=single) for key, value in node.items()}
    if isinstance(node, list):
        shell = any(isinstance(item, str) and item in SHELLS for item in node)
        marked = [_marked(item, single=single and not shell) for item in node]
        return [literal(item) if isinstance(item, str) and not shell else item for item in marked]
    if not isinstance(node, str):
        return node
    text = node.replace("$$", LITERAL + "$")
    return re.sub(r"(?<!\0)\$(?!\()", LITERAL + "$", text) if single and MODULE not in text else text


def _containers(node: Any) -> Iterator[dict[Any, Any]]:
    """Yield every mapping that has a command or args, at any depth."""
    if isinstance(node, dict):
        if "command" in node or "args" in node or "entrypoint" in node:
            yield node
        for child in node.values():
            yield from _containers(child)
    elif isinstance(node, list):
        for child in node:
            yield from _containers(child)


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [str(item) for item in value if item is not None]
    text = re.sub(r"\\\r?\n", " ", str(value))
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _environment(container: dict[Any, Any]) -> dict[str, str]:
    """Return a container's environment: a mapping, NAME=VALUE words, or Kubernetes' name and value pairs.

    What is passed on without a value (from the caller's environment, from a secret) is left out.
    """
    found: dict[str, str] = {}
    for key in ("environment", "env"):
        given = container.get(key)
        if isinstance(given, dict):
            found |= {str(name): str(value) for name, value in given.items() if value is not None}
        for item in given if isinstance(given, list) else ():
            if isinstance(item, dict):
                found |= {str(item.get("name")): str(item["value"])} if item.get("value") is not None else {}
            else:
                name, equals, value = str(item).partition("=")
                found |= {name: value} if equals else {}
    return found
