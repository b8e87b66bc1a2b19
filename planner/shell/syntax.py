"""The parts of a shell script: words with their quotes and expansions, and commands around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ShellSyntaxError(Exception):
    """A shell syntax error: a quote or bracket stays open."""


@dataclass(frozen=True, slots=True)
class Literal:
    """Plain text; `quoted` keeps it from being split or expanded further."""

    text: str
    quoted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """`$NAME`, `${NAME}` or `${NAME<operator>operand}`; `index` is what stands in brackets."""

    name: str
    source: str
    quoted: bool = False
    operator: str = ""
    operand: Word | None = None
    index: str | None = None
    length: bool = False
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """`$((expression))`."""

    text: str
    source: str
    quoted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque:
    """A value known only at run time: `$(command)`, a placeholder such as <PATH> or {{ .Values.tp }}; `name` to look
    up.
    """

    source: str
    name: str | None = None
    default: str | None = None
    quoted: bool = False


Part = Literal | Variable | Arithmetic | Opaque


@dataclass(frozen=True, slots=True)
class Word:
    """One word and the line it begins in."""

    parts: tuple[Part, ...]
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """`NAME=value`, `NAME+=value`, `NAME[index]=value`, or an array of words."""

    name: str
    value: Word | None = None
    items: tuple[Word, ...] | None = None
    append: bool = False
    index: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Simple:
    """A simple command; `texts` are its here-documents (read when its line ends), `arithmetic` that of `((...))`."""

    words: tuple[Word, ...]
    line: int
    assignments: tuple[Assignment, ...] = ()
    texts: Sequence[Word] = ()
    arithmetic: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Both:
    """`left && right`, `left || right`."""

    left: Node
    operator: str
    right: Node


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands joined by `|`, each in a shell of its own."""

    commands: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """`! command`."""

    command: Node


@dataclass(frozen=True, slots=True)
class If:
    """Conditions with their blocks, and what runs when none holds."""

    branches: tuple[tuple[Block, Block], ...]
    otherwise: Block


@dataclass(frozen=True, slots=True)
class For:
    """`for name in words`; `words` None: over the script's own arguments; `counted` is the text of `((a; b; c))`."""

    name: str
    words: tuple[Word, ...] | None
    body: Block
    counted: str | None = None


@dataclass(frozen=True, slots=True)
class While:
    """`while` or (`until`) a condition."""

    condition: Block
    body: Block
    until: bool


@dataclass(frozen=True, slots=True)
class CaseOf:
    """`case word in pattern) ... ;;`."""

    word: Word
    branches: tuple[tuple[tuple[Word, ...], Block], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """`{ ...; }` or `( ... )`, the latter in a shell of its own; here-documents may follow."""

    body: Block
    apart: bool
    texts: Sequence[Word] = ()
    line: int = 0


@dataclass(frozen=True, slots=True)
class Function:
    """`name() { ... }`."""

    name: str
    body: Block


Node = Simple | Both | Pipe | Not | If | For | While | CaseOf | Group | Function
Block = tuple[Node, ...]
