"""LaunchLine: one server's words as its parser gets them, and which of them are unknown."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from planner.assumption import Assumption, UnknownValue
from planner.launch_lines.servers import FoundServer
from planner.sglang.flag_ledger import FlagClass, flag_ledger
from planner.sglang.flags import flags_by_name
from planner.shell.values import Text, merged

# The tag of SGLang's own images; an image that only builds on SGLang (Dynamo's) has a version of its own.
IMAGE_VERSION = re.compile(r"(?:^|[/\s\"'])(?:sglang(?:-rocm)?|sgl-dev):v?(?P<version>\d+\.\d+\.\d+(?:\.post\d+)?)")
# Flags beside the harmless ones of the ledger whose value may stay unknown.
HARMLESS = frozenset({"port", "served_model_name", "init_expert_location"})
MODEL_FLAGS = ("--model-path", "--model")
_DOTS = frozenset({"...", "\u2026", "[...]", "<...>"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchLine:
    """The server's arguments, its environment settings, the image it runs in and that image's release, if it names one.

    `options` is what is asked of the container's runtime, as `--name=value` of docker run.

    `left_out` are flags whose value is not known and decides nothing, or the model's; `unknown` those that must be
    asked for before a verdict; `assumed` the values taken instead; `doubted` the unset variables that decide a
    condition before the server. `role` is that of a server of several, `line` where it stands in its file.
    """

    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    image: str | None = None
    options: tuple[str, ...] = ()
    image_version: str | None = None
    pinned_version: str | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    assumed: tuple[Assumption, ...] = ()
    unknown: tuple[UnknownValue, ...] = ()
    doubted: tuple[str, ...] = ()
    role: str = "server"
    line: int = 1


@dataclass(kw_only=True)
class _Reading:
    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    assumed: list[Assumption] = field(default_factory=list)
    unknown: list[UnknownValue] = field(default_factory=list)


def launch_line(server: FoundServer) -> LaunchLine:
    """Return a found server as a launch line; values that are not known are asked for, assumed or left out."""
    reading = _Reading(notes=list(server.notes))
    arguments = _own_flags(server, reading)
    for flag, values in _groups(arguments):
        _take(flag, values, reading)
    version = IMAGE_VERSION.search(server.image or "")
    modes = [reading.words[i + 1] for i, word in enumerate(reading.words[:-1]) if word == "--disaggregation-mode"]
    mode = next((mode for mode in reversed(modes) if mode in ("prefill", "decode")), None)
    return LaunchLine(
        words=tuple(reading.words),
        environment=server.scope.environment(),
        image=server.image,
        options=server.options,
        image_version=version["version"] if version else None,
        notes=tuple(dict.fromkeys(reading.notes)),
        left_out=tuple(reading.left_out),
        assumed=merged([reading.assumed, server.scope.doubts.values()]),
        doubted=tuple(server.scope.doubts),
        unknown=tuple(dict.fromkeys(reading.unknown)),
        role=mode or server.role or "server",
        line=server.line,
    )


def how_to_give(values: Iterable[UnknownValue], doubted: Container[str] = ()) -> str:
    """Return how the values that are asked for can be given; those that conditions hang on come first."""
    sets, others = [], []
    for text in (value.text for value in values):
        name = Text(text).name
        if re.match(r"\$\{?\d", text):
            others.append("give the script's arguments after the file's name")
        elif name != text:
            sets.append(name)
        else:
            others.append(f"write the value in the place of {text[:40]}")
    roots = [name for name in sets if name in doubted]
    settings = " ".join(dict.fromkeys(f"--set {name}=..." for name in roots or sets))
    rest = ", which others may follow from" if roots and len(roots) < len(sets) else ""
    return ", ".join(dict.fromkeys([*([f"give it with {settings}{rest}"] if settings else []), *others]))


def _own_flags(server: FoundServer, reading: _Reading) -> Sequence[Text]:
    """Leave out the flags that Dynamo or the router read themselves, with a note."""
    if not server.kind:
        return server.arguments
    sglang_flags = flags_by_name()
    arguments: list[Text] = []
    for flag, values in _groups(server.arguments):
        name = flag.raw.partition("=")[0] if flag is not None else ""
        own = (
            name.startswith("--")
            and name not in sglang_flags
            and not any(other.startswith(name) for other in sglang_flags)
        )
        if own:
            shown = " ".join(text.source for text in (flag, *values) if text is not None)
            reading.notes.append(f"'{shown[:80]}' is {server.kind}'s own and left out")
        else:
            arguments += [*([flag] if flag is not None else []), *values]
    return arguments


def _groups(words: Sequence[Text]) -> Iterator[tuple[Text | None, list[Text]]]:
    """Yield each flag with the words that follow it; None for words before any flag."""
    flag: Text | None = None
    values: list[Text] = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word.raw):
            if flag is not None or values:
                yield flag, values
            flag, values = word, []
        else:
            values.append(word)
    if flag is not None or values:
        yield flag, values


def _take(flag: Text | None, values: list[Text], reading: _Reading) -> None:
    """Take one flag and its values over, or say why not."""
    name, equals, glued = flag.raw.partition("=") if flag is not None else ("", "", "")
    if flag is not None and not Text(name).known:
        _ask(flag, reading)
        return
    value_texts = [Text(glued, flag.assumed), *values] if flag is not None and equals else values
    own = _own_values(name, value_texts, reading)
    if not all(text.known for text in own):
        _unknown_value(name, own, reading)
        return
    plain = [text.raw for text in own]
    reading.words += [f"{name}={plain[0]}", *plain[1:]] if equals and plain else [*([name] if name else []), *plain]
    reading.assumed += merged([flag.assumed if flag is not None else (), *(text.assumed for text in own)])


def _own_values(name: str, texts: list[Text], reading: _Reading) -> list[Text]:
    """Return what belongs to the flag; an unset variable on its own becomes no word, an unknown one is asked for."""
    flag = flags_by_name().get(_spelled(name))
    takes = bool(name) and not (flag is not None and flag.is_switch)
    own: list[Text] = []
    for place, text in enumerate(texts):
        if text.raw in _DOTS:
            reading.notes.append(f"'{text.raw}' is left out: what it stands for is not in the file")
        elif text.known or (takes and place == 0):
            own.append(text)
        elif text.unset_only:
            why = "set nowhere in the file: taken as no word"
            reading.assumed.append(Assumption(name=text.name, value="", why=why))
        else:
            _ask(text, reading)
    return own


def _unknown_value(name: str, values: list[Text], reading: _Reading) -> None:
    shown = " ".join(text.source for text in values)
    full = _spelled(name)
    if full == "--node-rank":
        reading.words += ["--node-rank", "0"]
        reading.assumed.append(Assumption(name=full, value="0", why=f"{shown} is not known: the first node is judged"))
    elif full in MODEL_FLAGS or _is_harmless(full):
        reading.left_out.append("--model-path" if full in MODEL_FLAGS else full)
        reading.notes.append(f"'{name} {shown[:60]}' is left out: its value is unknown here")
    else:
        reading.unknown.append(UnknownValue(flag=full or name, text=shown))


def _is_harmless(name: str) -> bool:
    """Whether a flag decides neither memory nor speed, whatever its value; --config holds flags of its own."""
    flag = flags_by_name().get(name)
    if flag is None or flag.dest == "config":
        return False
    entry = flag_ledger().get(flag.dest)
    return flag.dest in HARMLESS or (entry is not None and entry.kind is FlagClass.HARMLESS)


def _ask(text: Text, reading: _Reading) -> None:
    reading.unknown.append(UnknownValue(flag="", text=text.source))


def _spelled(name: str) -> str:
    """Return the name itself, or the one it is an unambiguous beginning of."""
    flags = flags_by_name()
    if name in flags:
        return name
    near = [other for other in flags if other.startswith(name)]
    return near[0] if len(near) == 1 else name
