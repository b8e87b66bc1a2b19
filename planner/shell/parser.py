"""Reads a shell script into commands: lists, pipelines, conditions, loops, functions and here-documents.

Stray words that close nothing are passed over, as people post parts of scripts; an open quote is a ShellSyntaxError.
"""

from __future__ import annotations

import re

from planner.shell.command_reader import CommandReader, plain_text
from planner.shell.syntax import (
    Assignment,
    Block,
    Both,
    CaseOf,
    For,
    Function,
    Group,
    If,
    Node,
    Not,
    Pipe,
    ShellSyntaxError,
    Simple,
    While,
    Word,
)
from planner.shell.words import NAME

_DECLARING = frozenset({"export", "declare", "local", "readonly", "typeset"})
_RESERVED = re.compile(r"[a-z]+(?![^\s;|&<>()])|[{}!](?=\s|;|$)")
_TESTS = {"[[": "]]"}


class ShellParser(CommandReader):
    """Reads commands; `script()` reads them all."""

    def __init__(self, text: str, first_line: int = 1, depth: int = 0) -> None:
        super().__init__(text, first_line, depth)
        self._nested = 0

    def script(self) -> Block:
        """Return all commands of the text."""
        nodes: list[Node] = []
        while not self.done():
            before = self.at
            nodes += self._block(frozenset())
            if self.at == before:
                self.at += 1
        return tuple(nodes)

    def _block(self, until: frozenset[str], closers: str = ")") -> Block:
        """Return commands up to a reserved word of `until`, a closing bracket, or the end."""
        self._nested += 1
        if self._nested > 50:
            raise ShellSyntaxError("nested too deeply")
        nodes: list[Node] = []
        while not self._at_end_of_block(until, closers):
            before = self.at
            node = self._list()
            nodes += [node] if node is not None else []
            if self.at == before:
                self._stray()
        self._nested -= 1
        return tuple(nodes)

    def _at_end_of_block(self, until: frozenset[str], closers: str) -> bool:
        self._blanks(newlines=True)
        return self.done() or self.peek() in closers or self.peek(2) == ";;" or self._reserved() in until

    def _stray(self) -> None:
        """Pass over closing words that match no opening one."""
        word = self._reserved()
        self.at += len(word) if word else 1

    def _reserved(self) -> str:
        match = _RESERVED.match(self.text, self.at)
        return match[0] if match else ""

    def _take(self, word: str) -> bool:
        """Pass over a reserved word if it stands here."""
        self._blanks(newlines=True)
        if self._reserved() != word:
            return False
        self.at += len(word)
        return True

    def _list(self) -> Node | None:
        """Read pipelines joined by && and ||."""
        node = self._pipeline()
        while node is not None:
            self._blanks()
            operator = self.peek(2)
            if operator not in ("&&", "||"):
                break
            self.at += 2
            self._blanks(newlines=True)
            right = self._pipeline()
            if right is None:
                break
            node = Both(node, operator, right)
        return node

    def _pipeline(self) -> Node | None:
        if self._reserved() == "!":
            self.at += 1
            self._blanks()
            inner = self._pipeline()
            return None if inner is None else Not(inner)
        first = self._command()
        commands = [] if first is None else [first]
        while commands:
            self._blanks()
            if self.peek() != "|" or self.peek(2) == "||":
                break
            self.at += 2 if self.peek(2) == "|&" else 1
            self._blanks(newlines=True)
            following = self._command()
            if following is None:
                break
            commands.append(following)
        return None if not commands else commands[0] if len(commands) == 1 else Pipe(tuple(commands))

    def _command(self) -> Node | None:
        self._blanks()
        word, line = self._reserved(), self.line
        if word in ("time", "coproc", "then", "do", "else"):
            self.at += len(word)
            return self._command() if word in ("time", "coproc") else None
        compound = {"if": self._if, "for": self._for, "select": self._for, "case": self._case}.get(word)
        if compound is not None:
            self.at += len(word)
            return self._with_texts(compound(), line)
        if word in ("while", "until"):
            self.at += len(word)
            condition = self._block(frozenset({"do"}))
            return self._with_texts(While(condition, self._do_block(), word == "until"), line)
        if word == "function":
            self.at += len(word)
            self._blanks()
            name = self.word()
            return self._function(plain_text(name) if name else "")
        if word == "{":
            self.at += 1
            body = self._block(frozenset({"}"}))
            self._take("}")
            return self._with_texts(Group(body, apart=False), line)
        if self.peek(2) == "((":
            return self._arithmetic_command()
        if self.peek() == "(":
            return self._with_texts(self._subshell(), line)
        return self._simple()

    def _subshell(self) -> Node:
        self.at += 1
        body = self._block(frozenset())
        self.at += self.peek() == ")"
        return Group(body, apart=True)

    def _with_texts(self, node: Node, line: int) -> Node:
        """Read the redirections after a compound command; a here-document of it is kept."""
        texts: list[Word] = []
        self._blanks()
        while self._redirection(texts):
            self._blanks()
        return Group((node,), apart=False, texts=texts, line=line) if texts or self._pending else node

    def _arithmetic_command(self) -> Node:
        line = self.line
        inside = self._enclosed("(", ")")
        return Simple(words=(), line=line, arithmetic=inside.removeprefix("(").removesuffix(")"))

    def _if(self) -> Node:
        branches = []
        while True:
            condition = self._block(frozenset({"then", "fi"}))
            self._take("then")
            body = self._block(frozenset({"elif", "else", "fi"}))
            branches.append((condition, body))
            if not self._take("elif"):
                break
        otherwise = self._block(frozenset({"fi"})) if self._take("else") else ()
        self._take("fi")
        return If(tuple(branches), otherwise)

    def _do_block(self) -> Block:
        if self._take("{"):
            body = self._block(frozenset({"}"}))
            self._take("}")
            return body
        self._take("do")
        body = self._block(frozenset({"done"}))
        self._take("done")
        return body

    def _for(self) -> Node:
        self._blanks()
        if self.peek(2) == "((":
            counted = self._enclosed("(", ")").removeprefix("(").removesuffix(")")
            return For("", None, self._do_block(), counted=counted)
        name = self.word()
        words: list[Word] | None = None
        if self._take("in"):
            words = []
            while True:
                self._blanks()
                word = self.word()
                if word is None:
                    break
                words.append(word)
        return For(plain_text(name) if name else "", None if words is None else tuple(words), self._do_block())

    def _case(self) -> Node:
        self._blanks()
        subject = self.word() or Word(())
        self._take("in")
        branches = []
        while not self.done():
            self._blanks(newlines=True)
            if self._take("esac"):
                break
            self.at += self.peek() == "("
            patterns = self._patterns()
            branches.append((patterns, self._block(frozenset({"esac"}))))
            while self.peek() in (";", "&") and not self.done():
                self.at += 1
        return CaseOf(subject, tuple(branches))

    def _patterns(self) -> tuple[Word, ...]:
        patterns: list[Word] = []
        while not self.done():
            self._blanks()
            word = self.word()
            if word is not None:
                patterns.append(word)
            if self.peek() == "|":
                self.at += 1
            elif self.peek() == ")" or word is None:
                self.at += 1
                break
        return tuple(patterns)

    def _function(self, name: str) -> Node:
        self._blanks()
        if self.peek() == "(":
            self._enclosed("(", ")")
        self._blanks(newlines=True)
        body = self._command()
        return Function(name, () if body is None else (body,))

    def _simple(self) -> Node | None:
        """Read assignments, words and redirections up to an operator or the end of the line."""
        line, notes_before = self.line, len(self.notes)
        words: list[Word] = []
        assignments: list[Assignment] = []
        texts: list[Word] = []
        while True:
            self._blanks()
            if self._redirection(texts):
                continue
            declares = bool(words) and plain_text(words[0]) in _DECLARING
            assigned = self._assignment() if not words or declares else None
            if assigned is not None:
                assignments.append(assigned)
                continue
            word = self.word()
            if word is None:
                break
            if self.peek() == "(" and len(words) == 0 and NAME.match(plain_text(word) or "-") and not assignments:
                return self._function(plain_text(word))
            words.append(word)
            if plain_text(word) in _TESTS and len(words) == 1:
                words += self._test_words(_TESTS[plain_text(word)])
        if not (words or assignments or texts):
            return None
        return Simple(
            words=tuple(words), line=line, assignments=tuple(assignments), texts=texts,
            notes=tuple(self.notes[notes_before:]),
        )  # fmt: skip
