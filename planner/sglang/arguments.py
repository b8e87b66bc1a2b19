"""Reads an SGLang argument list as the release's own parser would, but collects every fault, not the first.

SGLang's parser is Python's argparse: flags may be abbreviated to any unambiguous beginning, values may follow
`=`, the last of two wins. Each flag with its values goes through argparse itself, so its rules are not restated.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

from packaging.version import Version

from planner.sglang.flags import Flag, FlagSet, flags_of, life_of
from planner.violation import Severity, Violation

# What to write instead of a flag that a release no longer, or not yet, has.
SUCCESSORS = {
    "--cuda-graph-max-bs": "--cuda-graph-max-bs-decode",
    "--cuda-graph-bs": "--cuda-graph-bs-decode",
    "--cuda-graph-max-bs-decode": "--cuda-graph-max-bs",
    "--cuda-graph-bs-decode": "--cuda-graph-bs",
    "--attn-dp-size": "--dp-size N --enable-dp-attention",
    "--attention-data-parallel-size": "--dp-size N --enable-dp-attention",
    "--enable-ep-moe": "--ep-size N",
    "--enable-deepep-moe": "--moe-a2a-backend deepep",
    "--enable-flashinfer-mla": "--attention-backend flashinfer",
    "--enable-flashmla": "--attention-backend flashmla",
    "--speculative-draft-model": "--speculative-draft-model-path",
    "--disable-decode-cuda-graph": "--disable-cuda-graph",
    "--disable-prefill-cuda-graph": "--disable-cuda-graph",
    "--pp": "--pp-size",
}
_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
_SUFFIXES = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_READABLE = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)")
LONGEST_SHOWN = 60
LARGEST_NUMBER = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """Typed values by SGLang's field name, and the complaints of its parser."""

    values: dict[str, Any]
    faults: tuple[Violation, ...]


class _Refused(Exception):
    """argparse's complaint about one flag."""


class _OneFlag(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Refused(message)


def read_arguments(words: Sequence[str], version: Version) -> Arguments:
    """Read the words after the program's name. Never raises: errors are in `faults`."""
    flags = flags_of(version)
    values: dict[str, Any] = {}
    faults: list[Violation] = []
    for head, tail in _chunks(words, flags):
        if head is None:
            faults += [_stray(word) for word in tail]
            continue
        typed, equals, glued = head.partition("=")
        names = [head] if head in flags.by_name else flags.spelled(typed)
        if len(names) != 1:
            faults.append(_unknown(typed, version, flags) if not names else _ambiguous(typed, names))
            continue
        flag = flags.by_name[names[0]]
        settings, fault = _one(flag, names[0], [names[0] + equals + glued, *tail])
        faults += fault
        for dest, value in settings.items():
            if _beyond(value):
                faults.append(_out_of_range(names[0], value))
            else:
                values[dest] = value
        if flag.deprecated is not None and not fault:
            faults.append(_deprecated(flag, names[0]))
    return Arguments(values=values, faults=tuple(faults))


def knows_flags(words: Sequence[str], version: Version) -> bool:
    """Whether a release has every flag of these words, each unambiguous."""
    flags = flags_of(version)
    heads = (head for head, _ in _chunks(words, flags) if head is not None)
    return all(head in flags.by_name or len(flags.spelled(head.partition("=")[0])) == 1 for head in heads)


def _chunks(words: Sequence[str], flags: FlagSet) -> Iterator[tuple[str | None, list[str]]]:
    """Yield (flag as typed, the words up to the next flag); None for words before any flag and after `--`."""
    head: str | None = None
    tail: list[str] = []
    for index, word in enumerate(words):
        if word == "--":
            yield head, tail
            yield None, list(words[index + 1 :])
            return
        if _is_flag(word, flags):
            if head is not None or tail:
                yield head, tail
            head, tail = word, []
        else:
            tail.append(word)
    yield head, tail


def _is_flag(word: str, flags: FlagSet) -> bool:
    """Say whether argparse takes the word for a flag rather than a value."""
    if not word.startswith("-") or len(word) == 1:
        return False
    if word in flags.by_name or word.partition("=")[0] in flags.by_name:
        return True
    return not _NUMBER.fullmatch(word) and (" " not in word or bool(flags.spelled(word.partition("=")[0])))


def _one(flag: Flag, name: str, words: list[str]) -> tuple[dict[str, Any], list[Violation]]:
    """Run argparse on one flag and its words; words it leaves over are strays."""
    parser = _OneFlag(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    if flag.is_switch:
        parser.add_argument(name, dest=flag.dest, action="store_const", const=flag.const is not False)
    else:
        convert = CONVERTERS.get(flag.type or "str", str)
        choices = list(flag.choices) if flag.choices else None
        parser.add_argument(name, dest=flag.dest, type=convert, nargs=flag.nargs, choices=choices)
    try:
        namespace, leftover = parser.parse_known_args(words)
    except _Refused as refusal:
        return {}, [_bad_value(flag, name, words[1:], str(refusal))]
    return vars(namespace), [_stray(word) for word in leftover]


def readable_int(text: str) -> int:
    """Convert '16k', '1M', '4Ki' or a plain integer, as SGLang does: suffixes are case-sensitive."""
    match = _READABLE.fullmatch(text.strip())
    if not match:
        return int(text)
    number, suffix = match.groups()
    if "." in number and suffix.endswith("i"):
        raise ValueError(f"decimals are not allowed with '{suffix}'")
    return int(Decimal(number) * _SUFFIXES[suffix])


def _json_list(text: str) -> list[Any]:
    value = json.loads(text)
    if not isinstance(value, list):
        raise ValueError("not a JSON list")
    return value


def _graph_config(text: str) -> dict[str, dict[str, Any]]:
    by_phase = json.loads(text)
    phases = isinstance(by_phase, dict) and all(
        phase in ("decode", "prefill") and isinstance(settings, dict) for phase, settings in by_phase.items()
    )
    if not phases:
        raise ValueError('not an object of the phases "decode" and "prefill"')
    return dict(by_phase)


CONVERTERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "human_readable_int": readable_int,
    "loads": json.loads,
    "json_list_type": _json_list,
    "parse_cuda_graph_config_arg": _graph_config,
}


def shown(text: str) -> str:
    """Return a user's word fit for a message: cut when long, control characters escaped."""
    plain = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return plain if len(plain) <= LONGEST_SHOWN else plain[:LONGEST_SHOWN] + "..."


def _beyond(value: Any) -> bool:
    """Say whether a number is one that SGLang parses and then fails on: infinite, not a number, or beyond counting."""
    if isinstance(value, list):
        return any(_beyond(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not -LARGEST_NUMBER < value < LARGEST_NUMBER


def _out_of_range(name: str, value: Any) -> Violation:
    return Violation(
        rule="number-out-of-range",
        severity=Severity.ERROR,
        message=f"{name} {shown(repr(value))} is not a number a server can use",
        fix="give a number of a sensible size",
    )


def _refused(rule: str, message: str, fix: str) -> Violation:
    return Violation(rule=rule, severity=Severity.ERROR, message=message, fix=fix, refused=True)


def _stray(word: str) -> Violation:
    return _refused(
        "unexpected-word", f"'{shown(word)}' belongs to no flag", "remove it, or put the flag it belongs to before it"
    )


def _ambiguous(typed: str, names: list[str]) -> Violation:
    listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    best = SUCCESSORS.get(typed)
    return _refused(
        "ambiguous-flag",
        f"{shown(typed)} is not a flag of this release and could stand for {listed}: SGLang stops",
        f"write {best if best in names else names[0]}",
    )


def _unknown(typed: str, version: Version, flags: FlagSet) -> Violation:
    life = life_of(typed)
    instead = SUCCESSORS.get(typed)
    if life:
        first, last = life
        when = f"it came with {first}" if Version(first) > version else f"{last} was the last release that has it"
        usable = instead is not None and instead.split()[0] in flags.by_name
        nearest = f"write {instead}" if usable else f"leave it out, or use SGLang {first if first == last else last}"
        if not usable and Version(first) > version:
            nearest = f"leave it out, or use SGLang {first} or newer"
        return _refused("flag-of-other-release", f"SGLang {version} has no {typed}: {when}", nearest)
    return _refused("unknown-flag", f"SGLang {version} has no flag {shown(typed)}", _nearest(typed, flags))


def _nearest(typed: str, flags: FlagSet) -> str:
    if not typed.startswith("--") and len(typed) > 2 and len(flags.spelled("-" + typed)) == 1:
        return f"write {flags.spelled('-' + typed)[0]}"
    plain = typed[:80].lower().replace("_", "-")
    near = [plain] if plain in flags.by_name else difflib.get_close_matches(plain, flags.by_name, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else "remove it; `python -m sglang.launch_server --help` lists all flags"


def _bad_value(flag: Flag, name: str, words: Sequence[str], refusal: str) -> Violation:
    if "expected" in refusal and "argument" in refusal:
        message = f"{name} lacks its value"
    elif "ignored explicit argument" in refusal:
        message = f"{name} is a switch and takes no value"
    else:
        message = f"{name} does not take '{shown(words[0] if words else refusal.rpartition(': ')[2])}'"
    if flag.choices:
        listed = [str(choice) for choice in flag.choices]
        near = difflib.get_close_matches(words[0][:80], listed, n=1) if words else []
        fix = f"did you mean {near[0]}?" if near else "choose one of " + ", ".join(listed)
        return _refused("flag-value", message, fix)
    kinds = {
        "int": "give a whole number",
        "float": "give a number",
        "human_readable_int": "give a whole number, or one with k, M, G, Ki, Mi, Gi (case-sensitive)",
        "loads": "give JSON",
        "json_list_type": "give a JSON list",
    }
    fix = "write it without a value" if flag.is_switch else kinds.get(flag.type or "str", "give it a value")
    return _refused("flag-value", message, fix)


def _deprecated(flag: Flag, name: str) -> Violation:
    instead = f"write {flag.deprecated} instead" if flag.deprecated else "leave it out"
    if flag.refused:
        return _refused("removed-flag", f"{name} was retired: SGLang stops", instead)
    return Violation(
        rule="deprecated-flag",
        severity=Severity.NOTE,
        message=f"{name} is deprecated and will go in a later release",
        fix=instead,
    )
