"""Expands words as a shell does: variables with their operators, arithmetic, arrays, splitting and braces."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator

from planner.assumption import Assumption
from planner.shell.arithmetic import evaluate, names_in
from planner.shell.scope import Scope, Value
from planner.shell.syntax import Arithmetic, Literal, Opaque, Part, ShellSyntaxError, Variable, Word
from planner.shell.values import Text, joined, unknown
from planner.shell.words import WordReader

_RANGE = re.compile(r"(.*?)\{(-?\d{1,6})\.\.(-?\d{1,6})(?:\.\.(\d{1,4}))?\}(.*)", re.DOTALL)
_CHOICE = re.compile(r"(.*?)\{([^{}\s\"]*,[^{}\s\"]*)\}(.*)", re.DOTALL)
_SEQ = re.compile(r"\$\(\s*seq((?:\s+[^\s()|;]+){1,3})\s*\)")
_ECHO = re.compile(r"\$\(\s*(?:echo|printf)\s+([^|;&]*)\)")
_PIECE = re.compile(r"(?:\0[^\0]*\0|[^\s\0])+")
MOST_WORDS = 4096


def expand(word: Word, scope: Scope) -> list[Text]:
    """Return the words that a word becomes; an empty unquoted expansion becomes none."""
    fields: list[list[Text]] = []
    current: list[Text] | None = None
    bare = all(isinstance(part, Literal) and not part.quoted for part in word.parts)
    for part in word.parts:
        if isinstance(part, Literal):
            current = [*(current or []), Text(part.text)]
            continue
        values = list(_values(part, scope))
        if part.quoted:
            for index, value in enumerate(values):
                if index:
                    fields.append(current or [])
                    current = []
                current = [*(current or []), value]
            continue
        for index, value in enumerate(values):
            if index and current is not None:
                fields.append(current)
                current = None
            current = _split(value, fields, current)
    if current is not None:
        fields.append(current)
    words = [joined(pieces) for pieces in fields]
    return [piece for text in words for piece in _braces(text)][:MOST_WORDS] if bare else words[:MOST_WORDS]


def expand_text(word: Word | None, scope: Scope) -> Text:
    """Return a word as one text, as in an assignment: nothing is split."""
    pieces = []
    for part in word.parts if word else ():
        pieces.append(Text(part.text) if isinstance(part, Literal) else joined(_values(part, scope), " "))
    return joined(pieces)


def _split(value: Text, fields: list[list[Text]], current: list[Text] | None) -> list[Text] | None:
    """Add an unquoted expansion to the words under way: blanks in it, outside unknown places, end words."""
    pieces = _PIECE.findall(value.raw)
    if value.raw[:1].isspace() and current is not None:
        fields.append(current)
        current = None
    for index, piece in enumerate(pieces):
        if index and current is not None:
            fields.append(current)
            current = None
        current = [*(current or []), Text(piece, value.assumed)]
    if value.raw[-1:].isspace() and current is not None:
        fields.append(current)
        current = None
    return current


def _values(part: Part, scope: Scope) -> Iterator[Text]:
    """Yield what one expansion gives: one text, or the elements of an array."""
    if isinstance(part, Literal):
        yield Text(part.text)
    elif isinstance(part, Arithmetic):
        yield arithmetic(part.text, scope, part.source)
    elif isinstance(part, Opaque):
        yield _opaque(part, scope)
    elif part.name in ("@", "*"):
        first = expand_text(part.operand, scope).raw.partition(":")[0] if part.operator == ":" else "1"
        yield from (scope.positional or ())[max(0, int(first) - 1) if first.isdecimal() else 0 :]
    elif part.index in ("@", "*") and not part.operator:
        yield from _elements(part, scope)
    else:
        yield from _parameter(part, scope)


def _elements(part: Variable, scope: Scope) -> Iterator[Text]:
    value = scope.look(part.name)
    if part.length:
        yield Text(str(len(value))) if isinstance(value, list) else unknown(part.source)
    elif isinstance(value, list):
        yield from value
    elif value is not None:
        yield value
    else:
        yield unknown(part.source, unset=True)


def _opaque(part: Opaque, scope: Scope) -> Text:
    """Return the value of a name in $(NAME), <NAME> or {{ name }}; only a run knows the others."""
    value = scope.look(part.name) if part.name else None
    if isinstance(value, Text):
        return value
    if part.default is not None:
        return Text(part.default).taking(Assumption(name=part.name or "", value=part.default, why="its default"))
    try:
        return _computed(part.source, scope) or unknown(part.source)
    except ShellSyntaxError:
        return unknown(part.source)


def _computed(source: str, scope: Scope) -> Text | None:
    """Return what `$(seq ...)` and a plain `$(echo ...)` give; None for other commands."""
    counted = _SEQ.fullmatch(source)
    if counted is not None:
        bounds = expand_text(WordReader(counted[1]).operand(), scope)
        numbers = [int(text) for text in bounds.raw.split() if re.fullmatch(r"-?\d{1,6}", text)]
        if bounds.known and len(numbers) == len(bounds.raw.split()):
            return Text(" ".join(map(str, _sequence(numbers))), bounds.assumed)
    echoed = _ECHO.fullmatch(source)
    if echoed is not None and not re.search(r"[`%]|\s-", echoed[1]):
        reader = WordReader(echoed[1])
        texts = [text for word in _words(reader) for text in expand(word, scope)]
        return joined(texts, " ")
    return None


def _words(reader: WordReader) -> Iterator[Word]:
    while not reader.done():
        word = reader.word()
        if word is not None:
            yield word
        else:
            reader.at += 1


def _sequence(numbers: list[int]) -> range:
    first, step, last = (1, 1, numbers[0]) if len(numbers) == 1 else (numbers[0], 1, numbers[-1])
    step = numbers[1] if len(numbers) == 3 else step
    return range(first, last + 1, max(1, step))[:MOST_WORDS]


def _parameter(part: Variable, scope: Scope) -> Iterator[Text]:
    value = _plain(part, scope)
    operator = part.operator
    if operator.lstrip(":") in ("-", "=") and operator:
        yield from _defaulted(part, value, scope)
    elif operator in (":+", "+"):
        if value is not None and (operator == "+" or value.raw):
            yield from expand(part.operand or Word(()), scope) if value.known else [unknown(part.source)]
    elif value is None:
        yield unknown(part.source, unset=True)
    elif operator in ("", ":?", "?"):
        yield Text(str(len(value.raw)), value.assumed) if part.length and value.known else value
    elif value.known:
        yield _changed(value, part, scope)
    else:
        yield unknown(part.source)


def _plain(part: Variable, scope: Scope) -> Text | None:
    """Return the variable itself, the first or the indexed element of an array; None where it is set nowhere."""
    if part.name.isdecimal():
        argument = scope.argument(int(part.name))
        return argument
    if part.name == "#":
        return Text(str(len(scope.positional or ())))
    if not (part.name[0].isalpha() or part.name[0] == "_"):
        return unknown(part.source)
    element = scope.variables.get(f"{part.name}[{_key(part.index, scope)}]") if part.index else None
    if isinstance(element, Text):
        return element
    value: Value | None = scope.look(part.name)
    if isinstance(value, list):
        place = arithmetic(part.index or "0", scope, part.source)
        number = int(place.raw) if place.known and place.raw.lstrip("-").isdecimal() else None
        if number is None:
            return unknown(part.source)
        return value[number] if -len(value) <= number < len(value) else Text("")
    return value


def _key(index: str, scope: Scope) -> str:
    """Return the key between brackets as a shell reads it: its variables expanded, its quotes gone."""
    try:
        return expand_text(Word(tuple(WordReader(index).quoted_until(""))), scope).raw.strip("\"' ")
    except ShellSyntaxError:
        return index


def _defaulted(part: Variable, value: Text | None, scope: Scope) -> Iterator[Text]:
    """Take the default of an unset variable, as an assumption."""
    script_argument = part.name.isdecimal() and scope.positional is None
    empty = value is None or script_argument or (part.operator.startswith(":") and value.raw == "")
    if not empty and value is not None:
        yield value
        return
    default_words = [
        text.taking(Assumption(name=part.name, value=text.raw, why=f"its default in line {part.line}"))
        if text.known
        else text
        for text in expand(part.operand or Word(()), scope)
    ]
    if part.operator.endswith("="):
        scope.variables[part.name] = joined(default_words, " ")
    yield from default_words


def _changed(value: Text, part: Variable, scope: Scope) -> Text:
    """Apply `#`, `%`, `/`, `^`, `,` and `:offset:length` to a known value."""
    operand = expand_text(part.operand, scope)
    if not operand.known:
        return unknown(part.source)
    text, pattern, operator = value.raw, operand.raw, part.operator
    if operator in ("#", "##", "%", "%%"):
        text = _trimmed(text, pattern, operator)
    elif operator in ("/", "//"):
        old, _, new = pattern.partition("/")
        text = re.sub(fnmatch.translate(old)[4:-3], lambda _: new, text, count=0 if operator == "//" else 1)
    elif operator in ("^^", ",,"):
        text = text.upper() if operator == "^^" else text.lower()
    elif operator == ":":
        offset, _, length = pattern.partition(":")
        begin, size = evaluate(offset, {}), evaluate(length, {}) if length else None
        if begin is None or (length and size is None):
            return unknown(part.source)
        text = text[begin:] if size is None else text[begin:][:size]
    else:
        return unknown(part.source)
    return Text(text, value.assumed)


def _trimmed(text: str, pattern: str, operator: str) -> str:
    """Cut the shortest (or longest) match of a pattern off the beginning or the end."""
    front, longest = operator[0] == "#", len(operator) == 2
    lengths = range(len(text) + 1) if not longest else range(len(text), -1, -1)
    for length in lengths:
        piece = text[:length] if front else text[len(text) - length :]
        if fnmatch.fnmatchcase(piece, pattern):
            return text[length:] if front else text[: len(text) - length]
    return text


def arithmetic(text: str, scope: Scope, source: str) -> Text:
    """Return the value of an integer expression; unknown where a variable in it is."""
    try:
        parts = WordReader(text).quoted_until("")
    except ShellSyntaxError:
        return unknown(source)
    plain = joined(Text(part.text) if isinstance(part, Literal) else joined(_values(part, scope)) for part in parts)
    if not plain.known:
        return unknown(source)
    values, used_texts = {}, [plain]
    for name in names_in(plain.raw):
        value = scope.look(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is None or not value.known:
            return unknown(source)
        number = evaluate(value.raw, {}) if value.raw.strip() else 0
        if number is None:
            return unknown(source)
        values[name] = number
        used_texts.append(value)
    result = evaluate(plain.raw, values)
    return unknown(source) if result is None else Text(str(result), joined(used_texts).assumed)


def _braces(text: Text) -> list[Text]:
    """Expand `{1..8}` and `{a,b}` of an unquoted word."""
    span = _RANGE.fullmatch(text.raw)
    if span is not None:
        first, last, step = int(span[2]), int(span[3]), max(1, int(span[4] or 1))
        numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        return [Text(f"{span[1]}{number}{span[5]}") for number in numbers[:MOST_WORDS]]
    choice = _CHOICE.fullmatch(text.raw)
    if choice is None:
        return [text]
    return [Text(f"{choice[1]}{item}{choice[3]}") for item in choice[2].split(",")]
