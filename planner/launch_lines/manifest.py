"""Finds the SGLang servers of YAML: containers, scripts in any text, and SGLang's settings at any depth."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from planner.assumption import Assumption
from planner.launch_lines.container_options import options_of_service
from planner.launch_lines.interpolation import compose_text, kubernetes_text, literal_dollars, split_words
from planner.launch_lines.launch_line import IMAGE_VERSION
from planner.launch_lines.model_names import named_checkpoint
from planner.launch_lines.placed_yaml import Placed, read_yaml
from planner.launch_lines.platforms import variables_of
from planner.launch_lines.servers import MENTION, FoundServer, servers_of_command, servers_of_script
from planner.launch_lines.settings import flag_of, is_settings, words_of_settings
from planner.shell.scope import Scope
from planner.shell.script import Started
from planner.shell.values import Text, unknown

COMMAND_KEYS = ("entrypoint", "command", "args", "arguments")
SHELLS = ("bash", "sh", "/bin/bash", "/bin/sh", "zsh", "/usr/bin/bash", "/bin/zsh")
MODEL_FLAGS = ("--model-path", "--model")
MOST_VISITS, DEEPEST = 20_000, 40
_VARIANT = re.compile(r"(?:zip_)?override_")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the walk is: the kind of document, what its containers can see, and the names on the way."""

    kind: str
    scope: Scope
    document: Any
    image: str | None = None
    options: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    visits: list[int] = field(default_factory=lambda: [0])

    def may_go_on(self) -> bool:
        """Count a visit; a text that refers to itself, or to itself many times over, ends here."""
        self.visits[0] += 1
        return self.visits[0] <= MOST_VISITS and len(self.path) <= DEEPEST

    def below(self, key: Any) -> _Place:
        return replace(self, path=(*self.path, str(key)))


def servers_of_manifest(text: str, scope: Scope, line: int = 1, name: str = "the manifest") -> list[FoundServer]:
    """Return the servers of a YAML text, in order. Raises InputError for what is no YAML."""
    documents = read_yaml(text, name, line)
    config_maps = _config_maps(documents)
    servers: list[FoundServer] = []
    for document in documents:
        kind = _kind(document)
        inner = scope.copy()
        inner.caller = scope.caller if kind == "compose" else {}  # no other platform passes the caller's on
        place = _Place(kind=kind, scope=inner, document=document, names=config_maps)
        servers += _walk(document, place)
    images = {match[0].strip() for match in IMAGE_VERSION.finditer(text)} | set(_chart_images(documents))
    only = images.pop() if len(images) == 1 else None
    return [server if server.image else replace(server, image=only) for server in servers]


def _kind(document: Any) -> str:
    if isinstance(document, dict) and "services" in document and "apiVersion" not in document:
        return "compose"
    return "kubernetes" if isinstance(document, dict) and "apiVersion" in document else "other"


def _config_maps(documents: list[Any]) -> dict[str, dict[str, str]]:
    """Return the data of the ConfigMaps of the same file, by name."""
    data_by_name = {}
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "ConfigMap":
            data, meta = document.get("data"), document.get("metadata")
            if isinstance(data, dict) and isinstance(meta, dict):
                data_by_name[str(meta.get("name"))] = {str(key): str(value) for key, value in data.items()}
    return data_by_name


def _walk(node: Any, place: _Place) -> Iterator[FoundServer]:
    """Yield the servers of a node and of all below it."""
    if not place.may_go_on():
        return
    if isinstance(node, dict):
        place = _entered(node, place)
        read_keys: set[Any] = set()
        if any(key in node for key in COMMAND_KEYS):
            servers = list(_of_container(node, place))
            read_keys = set(COMMAND_KEYS) if servers else set()
            yield from servers
        elif is_settings(node):
            yield _of_settings(node, place)
            return
        for key, child in node.items():
            if key not in read_keys:
                yield from _walk(child, place.below(key))
    elif isinstance(node, list):
        for child in node:
            yield from _walk(child, place.below(""))
    elif isinstance(node, str) and MENTION.search(node) and re.search(r"\s", node.strip()):
        yield from _of_script(node, place)


def _entered(node: dict[Any, Any], place: _Place) -> _Place:
    """Return the place inside a mapping: what its platform sets there, its environment and its image."""
    platform_variables = variables_of(node)
    image = _image(node, place)
    settings = _environment(node, place)
    if place.kind == "compose" and len(place.path) == 2 and (options := options_of_service(node)):
        place = replace(place, options=options)
    if not platform_variables and not settings and image == place.image:
        return place
    scope = place.scope.copy()
    scope.variables |= dict(platform_variables.items())
    scope.variables |= settings
    scope.exported |= settings.keys()
    return replace(place, scope=scope, image=str(image) if image is not None else None)


def _image(node: dict[Any, Any], place: _Place) -> str | None:
    """Return the image of a container, or the one a recipe names beside its model."""
    image = node.get("image")
    model = node.get("model")
    if image is None and isinstance(model, dict):
        image = model.get("container")
    if isinstance(image, dict) and image.get("repository"):  # a chart's values
        image = f"{image['repository']}:{image.get('tag', '')}"
    if not isinstance(image, str):
        return place.image
    return _value(image, place).source


def _chart_images(node: Any, depth: int = 0) -> Iterator[str]:
    """Yield the SGLang images that a chart's values name as repository and tag."""
    if depth > 6 or not isinstance(node, dict | list):
        return
    if isinstance(node, dict) and IMAGE_VERSION.search(f"{node.get('repository')}:{node.get('tag')}"):
        yield f"{node['repository']}:{node['tag']}"
    for child in node.values() if isinstance(node, dict) else node:
        yield from _chart_images(child, depth + 1)


def _environment(node: dict[Any, Any], place: _Place) -> dict[str, Text]:
    """Return the environment a mapping sets: a mapping, NAME=VALUE words, or Kubernetes' name and value pairs.

    What is passed on without a value (from the caller's environment, from a secret) is left out.
    """
    environment: dict[str, Text] = {}
    for key in ("environment", "env", "envs"):
        entries = node.get(key)
        if isinstance(entries, dict):
            environment |= {
                str(n): _value(str(v), place) for n, v in entries.items() if v is not None and not _nested(v)
            }
        for item in entries if isinstance(entries, list) else ():
            environment |= _environment_item(item, place)
    for source in node.get("envFrom") or () if isinstance(node.get("envFrom"), list) else ():
        reference = source.get("configMapRef") if isinstance(source, dict) else None
        name = reference.get("name") if isinstance(reference, dict) else None
        environment |= {key: Text(value) for key, value in place.names.get(str(name), {}).items()}
    return environment


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list)


def _environment_item(item: Any, place: _Place) -> dict[str, Text]:
    if not isinstance(item, dict):
        name, equals, value = str(item).partition("=")
        return {name: _value(value, place)} if equals else {}
    name, literal, source = str(item.get("name")), item.get("value"), item.get("valueFrom")
    if literal is not None:
        return {name: _value(_scalar(literal), place)}
    reference = source.get("configMapKeyRef") if isinstance(source, dict) else None
    if not isinstance(reference, dict):
        return {}
    config_value = place.names.get(str(reference.get("name")), {}).get(str(reference.get("key")))
    return {} if config_value is None else {name: Text(config_value)}


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(text: str, place: _Place) -> Text:
    if place.kind == "compose":
        return compose_text(text, place.scope)
    return kubernetes_text(text, place.scope) if place.kind == "kubernetes" else Text(text)


def _of_container(node: dict[Any, Any], place: _Place) -> Iterator[FoundServer]:
    """Yield the servers of a mapping with a command: its entrypoint, command and arguments in this order."""
    words: list[Text] = []
    line = 0
    for key in COMMAND_KEYS:
        value = node.get(key)
        line = line or _line_of(value)
        words += _listed(value, place)
    if not words:
        return
    sources = [word.source for word in words]
    if sources[0].startswith("-"):
        if "sglang" not in f"{place.image} {node.get('name')}" or not any(s.startswith("--") for s in sources):
            return
        words = [Text("-m"), Text("sglang.launch_server"), *words]
    started = Started(words=tuple(words), line=line, scope=place.scope)
    for server in servers_of_command(started):
        yield _at_place(server, place)


def _line_of(value: Any) -> int:
    first = value[0] if isinstance(value, list) and value else value
    return first.line if isinstance(first, Placed) else 0


def _listed(value: Any, place: _Place) -> list[Text]:
    """Return a command's words: a list as it is, a text split as its platform splits it."""
    if value is None or isinstance(value, dict):
        return []
    if isinstance(value, list):
        texts = [_scalar(item) for item in value if item is not None and not _nested(item)]
        shell = any(text in SHELLS for text in texts)
        return [_word(text, place, shell=shell) for text in texts]
    if place.kind == "other" and MENTION.search(str(value)):
        return [Text("bash"), Text("-c"), Text(str(value))]
    text = re.sub(r"\\\r?\n", " ", str(value))
    whole = compose_text(text, place.scope) if place.kind == "compose" else Text(text)
    return [Text(piece, whole.assumed) for piece in split_words(whole.raw)]


def _word(text: str, place: _Place, *, shell: bool) -> Text:
    """Return one word of a list; where no shell follows, a dollar that its platform leaves alone is one."""
    if place.kind == "compose":
        return compose_text(text, place.scope)
    if place.kind == "kubernetes":
        return kubernetes_text(text, place.scope, keep=shell and bool(re.search(r"\s", text)))
    return Text(text) if shell else literal_dollars(text, place.scope)


def _of_script(node: str, place: _Place) -> Iterator[FoundServer]:
    line = node.line if isinstance(node, Placed) else 1
    for server in servers_of_script(node, place.scope.copy(), line):
        yield _at_place(server, place)


def _of_settings(node: dict[Any, Any], place: _Place) -> FoundServer:
    """Return the server of a mapping of settings; the model and the nodes may be named elsewhere in the document."""
    words = [_value(word, place) for word in words_of_settings(node)]
    names = {flag_of(key) for key in node}
    role = next((name for name in reversed(place.path) if name in ("prefill", "decode", "aggregated")), None)
    if place.path and not names & set(MODEL_FLAGS):
        words += [Text("--model-path"), _model_of(place.document) or unknown("the recipe's model")]
    if role in ("prefill", "decode") and "--disaggregation-mode" not in names:
        words += [Text("--disaggregation-mode"), Text(str(role))]
    lines = [key.line for key in node if isinstance(key, Placed)]
    server = FoundServer(arguments=tuple(words), scope=place.scope, line=min(lines, default=1), role=role)
    return _at_place(server, place, nodes=(f"NODES_{role}", "LWS_GROUP_SIZE"))


def _model_of(document: Any, depth: int = 0) -> Text | None:
    """Return the model that a recipe names outside its settings: `model: {path: ..., precision: fp4}` or a chart's."""
    if not isinstance(document, dict) or depth > 4:
        return None
    model = document.get("model")
    path = model.get("path") if isinstance(model, dict) else model
    if isinstance(path, str) and path:
        precision = str(model.get("precision") or "").lower() if isinstance(model, dict) else ""
        names_precision = not precision or precision in path.lower() or named_checkpoint(path).label is not None
        return Text(str(path) if names_precision else f"{path}-{precision}")
    inner_models = (_model_of(child, depth + 1) for child in document.values())
    return next((model for model in inner_models if model is not None), None)


def _at_place(server: FoundServer, place: _Place, nodes: Sequence[str] = ("NODES_dynamo",)) -> FoundServer:
    """Return a server with the role and image of its place, and the nodes that its platform starts by itself."""
    role = next((name for name in reversed(place.path) if name in ("prefill", "decode", "leader", "worker")), None)
    count = next((nodes_text for name in nodes if (nodes_text := place.scope.look(name)) is not None), None)
    arguments, words = server.arguments, {word.raw for word in server.arguments}
    if isinstance(count, Text) and "--nnodes" not in words and count.raw != "1":
        why = "the platform of the file starts so many nodes"
        arguments = (*arguments, Text("--nnodes"), count.taking(Assumption(name="--nnodes", value=count.raw, why=why)))
    variants = (
        [str(key) for key in place.document if _VARIANT.match(str(key))] if isinstance(place.document, dict) else []
    )
    notes = (
        [f"the variants of {', '.join(variants[:3])} are not read: check what srtctl makes of them"] if variants else []
    )
    return replace(
        server, arguments=arguments, image=server.image or place.image,
        options=server.options or place.options, role=server.role or role,
        notes=(*server.notes, *notes),
    )  # fmt: skip
