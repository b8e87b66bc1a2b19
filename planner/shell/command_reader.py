"""Reads the parts of a simple command: blanks, tests, assignments, redirections and here-documents."""

from __future__ import annotations

import re

from planner.shell.syntax import Assignment, Literal, Word
from planner.shell.words import IN_TEXT, WordReader, parts_of_text

_ASSIGNED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\[([^\]]*)\])?(\+?)=")
_REDIRECT = re.compile(r"(\d*|\{\w+\})(<<-|<<<|<<|<&|<>|>>|>&|>\||&>>|&>|<|>)")
_BLANK_AFTER_BACKSLASH = re.compile(r"\\[ \t]+\n")
_TEST_OPERATOR = re.compile(r"&&|\|\||[()<>]")


class CommandReader(WordReader):
    """Reads what stands between the words of a command; here-documents wait for the end of their line."""

    def __init__(self, text: str, first_line: int = 1, depth: int = 0) -> None:
        super().__init__(text, first_line, depth)
        self._pending: list[tuple[str, bool, bool, list[Word]]] = []

    def _blanks(self, *, newlines: bool = False) -> None:
        """Pass over blanks, continued lines and comments; with `newlines` over separators too."""
        while not self.done():
            char = self.peek()
            torn = _BLANK_AFTER_BACKSLASH.match(self.text, self.at)
            if self.peek(2) == "\\\n":
                self.at += 2
            elif torn is not None:
                note = f"line {self.line}: a blank follows the backslash, where a shell ends the command: read on"
                self.notes.append(note)
                self.at = torn.end()
            elif char in " \t":
                self.at += 1
            elif char == "#" and (self.at == 0 or self.text[self.at - 1] in " \t\n;|&()"):
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif newlines and char == "\n":
                self.at += 1
                self._read_texts()
            elif newlines and char in ";&" and self.peek(2) not in (";;", "&>"):
                self.at += 1
            else:
                return

    def _test_words(self, closing: str) -> list[Word]:
        """Read what stands in `[[ ... ]]`, where operators are words."""
        words: list[Word] = []
        while not self.done() and self.peek() != "\n":
            self._blanks()
            operator = _TEST_OPERATOR.match(self.text, self.at)
            if operator is not None:
                self.at = operator.end()
                words.append(Word((Literal(operator[0]),), self.line))
                continue
            word = self.word()
            if word is None:
                break
            words.append(word)
            if plain_text(word) == closing:
                break
        return words

    def _assignment(self) -> Assignment | None:
        match = _ASSIGNED.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        name, index, append = match[1], match[2], bool(match[3])
        if self.peek() != "(":
            return Assignment(name=name, value=self.word() or Word((), self.line), append=append, index=index)
        self.at += 1
        items: list[Word] = []
        while not self.done():
            self._blanks(newlines=True)
            if self.peek() == ")":
                self.at += 1
                break
            word = self.word()
            if word is None:
                self.at += 1
            else:
                items.append(word)
        return Assignment(name=name, items=tuple(items), append=append)

    def _redirection(self, texts: list[Word]) -> bool:
        """Read one redirection; a here-document is read when its line ends."""
        match = _REDIRECT.match(self.text, self.at)
        if match is None or self.peek(2) in ("<(", ">(") or self._placeholder_here():
            return False
        self.at = match.end()
        while self.peek() in (" ", "\t") and not self.done():
            self.at += 1
        start = self.at
        word = self.word()
        if match[2] == "<<<" and word is not None:
            texts.append(word)
        elif match[2] in ("<<", "<<-") and word is not None:
            quoted = any(char in self.text[start : self.at] for char in "'\"\\")
            self._pending.append((plain_text(word), match[2] == "<<-", quoted, texts))
        return True

    def _placeholder_here(self) -> bool:
        return self.peek() == "<" and self._ends_word() is False

    def _read_texts(self) -> None:
        """Read the here-documents whose line has just ended."""
        for end, tabs, quoted, texts in self._pending:
            line, start = self.line, self.at
            at, stop = start, len(self.text)
            while at < len(self.text):
                newline = self.text.find("\n", at)
                newline = len(self.text) if newline < 0 else newline
                row = self.text[at:newline].rstrip("\r")
                if (row.lstrip("\t") if tabs else row) == end:
                    stop = at
                    at = newline
                    break
                at = newline + 1
            body = self.text[start:stop]
            self.at = min(at, len(self.text))
            if quoted:
                texts.append(Word((Literal(body, quoted=True),), line))
            else:
                texts.append(Word(parts_of_text(body, line, self.depth + 1, escapable=IN_TEXT), line))
        self._pending.clear()


def plain_text(word: Word) -> str:
    """Return a word's text if it is plain text, else an empty one."""
    if not all(isinstance(part, Literal) for part in word.parts):
        return ""
    return "".join(part.text for part in word.parts if isinstance(part, Literal))
