"""Reads the words of a shell script: quotes, escapes, parameter and arithmetic expansions, placeholders."""

from __future__ import annotations

import re
from bisect import bisect_right

from planner.shell.syntax import Arithmetic, Literal, Opaque, Part, ShellSyntaxError, Variable, Word

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPECIAL = re.compile(r"[0-9@*#?$!-]")
_OPERATOR = re.compile(r":?[-=+?]|##?|%%?|//?|\^\^?|,,?|:|@")
_PLACEHOLDER = re.compile(r"<[A-Za-z][\w./ -]{0,60}>")
_TEMPLATE = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_DEFAULTED = re.compile(r"([\w.$-]+)\s*\|\s*default\s+\"?([\w./:-]+)\"?(?:\s*\|\s*\w+)*")
_ANSI = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b"}
BREAKS = " \t\n;|&<>()"
DEEPEST = 60
# What a backslash escapes between double quotes, and in a here-document.
IN_QUOTES, IN_TEXT = '$`"\\', "$`\\"


def template_part(match: re.Match[str], *, quoted: bool) -> Opaque:
    """Return a template's placeholder: the name to look up, and its default where it has one."""
    inside = match[1]
    named = _DEFAULTED.fullmatch(inside)
    name, default = (named[1], named[2]) if named else (inside.split("|")[0].strip(), None)
    return Opaque(source=match[0], name=name, default=default, quoted=quoted)


class WordReader:
    """Walks over a text; `at` is the next character, `first_line` the line the text begins in."""

    def __init__(self, text: str, first_line: int = 1, depth: int = 0) -> None:
        if depth > DEEPEST:
            raise ShellSyntaxError("nested too deeply")
        self.text = text.replace("\r\n", "\n").replace("\0", "")
        self.at = 0
        self.depth = depth
        self._first_line = first_line
        self._ends = [index for index, char in enumerate(self.text) if char == "\n"]
        self.notes: list[str] = []

    @property
    def line(self) -> int:
        """The line of the next character."""
        return self._first_line + bisect_right(self._ends, self.at - 1)

    def peek(self, length: int = 1) -> str:
        return self.text[self.at : self.at + length]

    def done(self) -> bool:
        return self.at >= len(self.text)

    def word(self) -> Word | None:
        """Read the word that begins here, or None where an operator or the end stands."""
        line, start = self.line, self.at
        parts: list[Part] = []
        while not self.done() and not self._ends_word():
            parts += self._parts()
        return Word(tuple(_glued(parts)), line) if self.at > start else None

    def quoted_until(self, end: str, *, escapable: str = IN_QUOTES) -> list[Part]:
        """Read text as between double quotes, up to `end` (or the end of the text when `end` is empty).

        A backslash takes the meaning from the `escapable` characters and stays before all others.
        """
        parts: list[Part] = []
        while True:
            if self.done():
                if end:
                    raise ShellSyntaxError(f"a quote opened before line {self.line} stays open")
                return _glued(parts)
            char = self.peek()
            if char == end:
                self.at += 1
                return _glued(parts) or [Literal("", quoted=True)]
            parts.append(self._quoted_part(char, escapable))

    def operand(self) -> Word:
        """Read the whole text as the operand of an expansion: blanks belong to it, quotes count."""
        line = self.line
        parts: list[Part] = []
        while not self.done():
            if self.peek() in BREAKS and not _PLACEHOLDER.match(self.text, self.at):
                parts.append(Literal(self.peek()))
                self.at += 1
            else:
                parts += self._parts()
        return Word(tuple(_glued(parts)), line)

    def _ends_word(self) -> bool:
        if self.peek() not in BREAKS:
            return False
        return not (self.peek(2) in ("<(", ">(") or (self.peek() == "<" and _PLACEHOLDER.match(self.text, self.at)))

    def _parts(self) -> list[Part]:
        char = self.peek()
        if char == '"':
            self.at += 1
            return self.quoted_until('"')
        if char == "'":
            return [Literal(self._until("'"), quoted=True)]
        if char == "\\":
            return self._escape()
        if char == "$":
            return self._dollar(quoted=False)
        if char == "`":
            return [Opaque(source=f"`{self._until('`')}`")]
        if char in "<>":
            return [self._angle()]
        template = _TEMPLATE.match(self.text, self.at) if char == "{" else None
        if template is not None:
            self.at = template.end()
            return [template_part(template, quoted=False)]
        self.at += 1
        return [Literal(char)]

    def _quoted_part(self, char: str, escapable: str) -> Part:
        if char == "\\" and escapable:
            following = self.text[self.at + 1 : self.at + 2]
            self.at += 2
            if following == "\n":
                return Literal("", quoted=True)
            return Literal(following if following and following in escapable else char + following, quoted=True)
        if char == "$":
            return self._dollar(quoted=True)[0]
        if char == "`":
            return Opaque(source=f"`{self._until('`')}`", quoted=True)
        template = _TEMPLATE.match(self.text, self.at) if char == "{" else None
        if template is not None:
            self.at = template.end()
            return template_part(template, quoted=True)
        self.at += 1
        return Literal(char, quoted=True)

    def _escape(self) -> list[Part]:
        following = self.text[self.at + 1 : self.at + 2]
        self.at += 2
        return [] if following == "\n" else [Literal(following or "\\", quoted=True)]

    def _angle(self) -> Part:
        placeholder = _PLACEHOLDER.match(self.text, self.at)
        if placeholder is not None:
            self.at = placeholder.end()
            return Opaque(source=placeholder[0], name=placeholder[0].strip("<>"))
        start = self.at
        self.at += 1
        self._enclosed("(", ")")
        return Opaque(source=self.text[start : self.at])

    def _until(self, quote: str) -> str:
        """Return what stands up to the closing quote; the opening one is at `at`."""
        end = self.text.find(quote, self.at + 1)
        if end < 0:
            raise ShellSyntaxError(f"{quote} in line {self.line} stays open")
        inside, self.at = self.text[self.at + 1 : end], end + 1
        return inside

    def _dollar(self, *, quoted: bool) -> list[Part]:
        start, pair = self.at, self.peek(2)
        if pair == '$"' and not quoted:
            self.at += 2
            return self.quoted_until('"')
        if pair == "$'" and not quoted:
            self.at += 1
            return [Literal(self._ansi(), quoted=True)]
        if pair == "${":
            return [self._braced(quoted=quoted)]
        if pair == "$(":
            return [self._bracketed(quoted=quoted)]
        match = NAME.match(self.text, self.at + 1) or _SPECIAL.match(self.text, self.at + 1)
        if match is None:
            self.at += 1
            return [Literal("$", quoted=quoted)]
        self.at = match.end()
        return [Variable(name=match[0], source=self.text[start : self.at], quoted=quoted, line=self.line)]

    def _bracketed(self, *, quoted: bool) -> Part:
        """Read `$((expression))`, `$(command)`, or the `$(NAME)` of a manifest."""
        start = self.at
        inside = self._arithmetic() if self.peek(3) == "$((" else None
        if inside is not None:
            return Arithmetic(text=inside, source=self.text[start : self.at], quoted=quoted)
        self.at += 1
        inside = self._enclosed("(", ")")
        name = inside.strip() if NAME.fullmatch(inside.strip()) else None
        return Opaque(source=self.text[start : self.at], name=name, quoted=quoted)

    def _arithmetic(self) -> str | None:
        """Return the expression of `$((...))`, or None where the brackets hold a command instead."""
        start = self.at
        self.at += 1
        inside = self._enclosed("(", ")")
        if inside.startswith("(") and inside.endswith(")"):
            return inside[1:-1]
        self.at = start
        return None

    def _ansi(self) -> str:
        """Read `'...'` with C escapes; the quote is at `at`."""
        text, self.at = "", self.at + 1
        while self.peek() != "'":
            if self.done():
                raise ShellSyntaxError("a quote stays open")
            if self.peek() == "\\":
                following = self.text[self.at + 1 : self.at + 2]
                text += _ANSI.get(following, following)
                self.at += 2
            else:
                text += self.peek()
                self.at += 1
        self.at += 1
        return text

    def _enclosed(self, opening: str, closing: str) -> str:
        """Return what stands between brackets; the opening one is at `at`. Quotes and nested brackets count."""
        start, level = self.at, 0
        while not self.done():
            char = self.peek()
            if char == "\\":
                self.at += 2
                continue
            if char in "'\"`":
                self._skip_quote(char)
                continue
            level += (char == opening) - (char == closing)
            self.at += 1
            if level == 0:
                return self.text[start + 1 : self.at - 1]
        raise ShellSyntaxError(f"'{opening}' before line {self.line} stays open")

    def _skip_quote(self, quote: str) -> None:
        self.at += 1
        while not self.done() and self.peek() != quote:
            if self.peek() == "\\" and quote != "'":
                self.at += 1
            elif self.peek(2) in ("$(", "${") and quote == '"':
                self.at += 1
                self._enclosed(self.peek(), ")" if self.peek() == "(" else "}")
                continue
            self.at += 1
        self.at += 1

    def _braced(self, *, quoted: bool) -> Part:
        """Read `${...}`; other forms stay unknown."""
        start, line = self.at, self.line
        self.at += 1
        inside = self._enclosed("{", "}")
        source = self.text[start : self.at]
        length = inside.startswith("#") and len(inside) > 1
        body = inside[1:] if length else inside
        name = NAME.match(body) or _SPECIAL.match(body)
        if name is None:
            return Opaque(source=source, quoted=quoted)
        rest, index = body[name.end() :], None
        if rest.startswith("[") and "]" in rest:
            index, _, rest = rest[1:].partition("]")
        operator = _OPERATOR.match(rest)
        if rest and operator is None:
            return Opaque(source=source, quoted=quoted)
        operand = None
        if operator is not None:
            reader = WordReader(rest[operator.end() :], line, self.depth + 1)
            operand = reader.operand()
        return Variable(
            name=name[0], source=source, quoted=quoted, operator=operator[0] if operator else "", operand=operand,
            index=index, length=length, line=line,
        )  # fmt: skip


def _glued(parts: list[Part]) -> list[Part]:
    """Join neighbouring literals of the same kind."""
    merged_parts: list[Part] = []
    pieces: list[str] = []

    def flush(quoted: bool) -> None:
        if pieces:
            merged_parts.append(Literal("".join(pieces), quoted=quoted))
            pieces.clear()

    kind = False
    for part in parts:
        if isinstance(part, Literal):
            if part.quoted is not kind:
                flush(kind)
                kind = part.quoted
            pieces.append(part.text)
        else:
            flush(kind)
            merged_parts.append(part)
    flush(kind)
    return merged_parts


def parts_of_text(text: str, line: int = 1, depth: int = 0, *, escapable: str) -> tuple[Part, ...]:
    """Return the parts of a text as within double quotes; an open `$(` or backtick makes it plain text."""
    try:
        return tuple(WordReader(text, line, depth).quoted_until("", escapable=escapable))
    except ShellSyntaxError:
        return (Literal(text, quoted=True),)
