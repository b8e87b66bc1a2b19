"""Traces a shell script without running it: which commands it starts, with which words, as far as the file says.

All branches of an unknown condition are followed; variables on which they differ are unknown afterwards. No command is
executed and no file is read.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from planner.shell.assignments import DECLARING, VARIABLES, assign, declare
from planner.shell.branches import PathEnds, follow_branches, skip_body
from planner.shell.conditions import holds
from planner.shell.expansion import arithmetic, expand, expand_text
from planner.shell.loops import MOST_TURNS, loop_values, loop_variable
from planner.shell.parser import ShellParser
from planner.shell.scope import Scope
from planner.shell.syntax import (
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
)
from planner.shell.values import Text, joined, unknown

_LAYOUT = re.compile(r"--(?:tp|tensor-parallel|nnodes|pp|pipeline|model|dp|data-parallel)\b")
MOST_STEPS = 20_000
DEEPEST = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A command as it would be started; `texts` are its here-documents, `scope` the variables it sees."""

    words: tuple[Text, ...]
    line: int
    scope: Scope
    texts: tuple[tuple[Text, int], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Run:
    started: list[Started] = field(default_factory=list)
    steps: int = 0
    depth: int = 0
    doubted: int = 0


def commands_of_script(text: str, scope: Scope, line: int = 1) -> list[Started]:
    """Return the commands a script starts, in order; `scope` is left as the script leaves it.

    A text with a syntax error is read line by line, leaving out the lines that fail.
    """
    run = _Run()
    try:
        nodes: Sequence[Node] = ShellParser(text, line).script()
    except (ShellSyntaxError, RecursionError):
        nodes = list(_line_by_line(text, line))
    _top(nodes, scope, run)
    if not run.started or not any("launch_server" in word.raw for item in run.started for word in item.words):
        for body in list(scope.functions.values()):
            _top(body, scope.copy(), run)
    return run.started


def _line_by_line(text: str, line: int) -> Iterator[Node]:
    for row in re.sub(r"\\[ \t]*\r?\n", "\v", text).split("\n"):
        with suppress(ShellSyntaxError, RecursionError):
            yield from ShellParser(row.replace("\v", " "), line).script()
        line += 1 + row.count("\v")


def _top(nodes: Sequence[Node], scope: Scope, run: _Run) -> None:
    """Run commands one by one; a script that ends early by a test of its arguments is read on."""
    for node in nodes:
        try:
            _run(node, scope, run)
        except PathEnds:
            continue


def _block(nodes: Block, scope: Scope, run: _Run) -> bool | None:
    """Run a block and return the status of its last command (None: not known)."""
    status: bool | None = True
    for node in nodes:
        status = _run(node, scope, run)
    return status


def _run(node: Node, scope: Scope, run: _Run) -> bool | None:
    run.steps += 1
    if run.steps > MOST_STEPS or run.depth > DEEPEST:
        return None
    run.depth += 1
    try:
        return _HANDLERS[type(node)](node, scope, run)
    finally:
        run.depth -= 1


def _not(node: Not, scope: Scope, run: _Run) -> bool | None:
    status = _run(node.command, scope, run)
    return None if status is None else not status


def _pipe(node: Pipe, scope: Scope, run: _Run) -> bool | None:
    for command in node.commands:
        _contained(command, scope.copy(), run)
    return None


def _function(node: Function, scope: Scope, run: _Run) -> bool | None:
    scope.functions[node.name] = node.body
    return True


def _contained(node: Node, scope: Scope, run: _Run) -> bool | None:
    """Run a command whose `exit` ends only itself."""
    try:
        return _run(node, scope, run)
    except PathEnds:
        return None


def _group(node: Group, scope: Scope, run: _Run) -> bool | None:
    if node.apart:
        return _contained(Group(node.body, apart=False), scope.copy(), run)
    status = _block(node.body, scope, run)
    if node.texts:
        texts = tuple((expand_text(word, scope), word.line) for word in node.texts)
        run.started.append(Started(words=(), line=node.line, scope=scope.copy(), texts=texts))
    return status


def _both(node: Both, scope: Scope, run: _Run) -> bool | None:
    doubts = run.doubted
    first_status = _run(node.left, scope, run)
    if first_status is None:
        if node.operator == "&&":
            return _run(node.right, scope, run)
        follow_branches([partial(_block_on, (node.right,), run), skip_body], scope)
        return None
    if first_status is (node.operator == "&&"):
        return _run(node.right, scope, run)
    if run.doubted > doubts:
        scope.variables |= _look_into([(node.right,)], scope, run)
    return first_status


def _look_into(bodies: Sequence[Block], scope: Scope, run: _Run) -> dict[str, Text]:
    """Follow what would run if a variable had another value: servers started there are found, too.

    Returns the layouts that only those paths give a variable: where the taken path leaves it unset, it is not known.
    """
    layouts: dict[str, Text] = {}
    for body in bodies:
        inner = scope.copy()
        with suppress(PathEnds):
            _block(body, inner, run)
        for name, value in inner.variables.items():
            text = joined(value, " ") if isinstance(value, list) else value
            if name not in scope.variables and _LAYOUT.search(text.source):
                layouts[name] = unknown(f"${name}")
    return layouts


def _test(words: Sequence[Text], scope: Scope, run: _Run) -> bool | None:
    """Return what a test gives; an unset variable counts as empty, as in a shell, and is noted as a doubt."""
    plain = []
    for word in words:
        if word.unset_only:
            scope.doubt(word.name)
        scope.doubts |= {assumption.name: assumption for assumption in word.assumed}
        run.doubted += word.unset_only or bool(word.assumed)
        plain.append(Text("") if word.unset_only else word)
    return holds(plain)


def _block_on(nodes: Block, run: _Run, scope: Scope) -> None:
    _block(nodes, scope, run)


def _if(node: If, scope: Scope, run: _Run) -> bool | None:
    paths: list[Block] = []
    passed: list[Block] = []
    doubts = run.doubted
    bodies = [body for _, body in node.branches] + [node.otherwise]
    for condition, body in node.branches:
        status = _block(condition, scope, run)
        if status is True and not paths:
            return _taken(body, bodies if run.doubted > doubts else passed, scope, run)
        if status is not False:
            paths.append(body)
        if status is True:
            break
    else:
        if not paths:
            return _taken(node.otherwise, bodies if run.doubted > doubts else passed, scope, run)
        paths.append(node.otherwise)
    follow_branches([partial(_block_on, body, run) for body in paths], scope)
    return None


def _taken(body: Block, others: Sequence[Block], scope: Scope, run: _Run) -> bool | None:
    """Run the path that is taken, after a look into those that depend on an unset variable."""
    layouts = _look_into([other for other in others if other is not body and other], scope, run)
    status = _block(body, scope, run)
    scope.variables = {**layouts, **scope.variables}
    return status


def _for(node: For, scope: Scope, run: _Run) -> bool | None:
    values = loop_values(node, scope)
    name = loop_variable(node)
    if values is None:
        values = [unknown(f"${name}")]
    for value in values[:MOST_TURNS]:
        scope.variables[name] = value
        _block(node.body, scope, run)
    return None


def _while(node: While, scope: Scope, run: _Run) -> bool | None:
    status = _block(node.condition, scope, run)
    if status is not None and status is node.until:
        return None
    follow_branches([partial(_block_on, node.body, run), skip_body], scope)
    return None


def _case(node: CaseOf, scope: Scope, run: _Run) -> bool | None:
    subject, layouts = expand_text(node.word, scope), {}
    if subject.unset_only:
        scope.doubt(subject.name)
        subject = Text("")
        layouts = _look_into([body for _, body in node.branches], scope, run)
    elif subject.assumed:
        scope.doubts |= {assumption.name: assumption for assumption in subject.assumed}
        layouts = _look_into([body for _, body in node.branches], scope, run)
    paths: list[Block] = []
    for patterns, body in node.branches:
        texts = [expand_text(pattern, scope) for pattern in patterns]
        if subject.known and all(text.known for text in texts):
            if any(fnmatch.fnmatchcase(subject.raw, text.raw) for text in texts):
                status = _block(body, scope, run)
                scope.variables = {**layouts, **scope.variables}
                return status
        else:
            paths.append(body)
    if paths:
        follow_branches([*(partial(_block_on, body, run) for body in paths), skip_body], scope)
    scope.variables = {**layouts, **scope.variables}
    return None


def _simple(node: Simple, scope: Scope, run: _Run) -> bool | None:
    if node.arithmetic is not None:
        value = arithmetic(node.arithmetic, scope, node.arithmetic)
        return value.raw != "0" if value.known else None
    words = [text for word in node.words for text in expand(word, scope)]
    if not words and not node.texts:
        for assignment in node.assignments:
            assign(assignment, scope)
        return True
    name = words[0].raw if words else ""
    if name in DECLARING:
        return declare(node, words, scope)
    if name in VARIABLES:
        return VARIABLES[name](words, scope)
    if name in BUILTINS:
        return BUILTINS[name](words, scope, run, node.line)
    if name in ("[", "[[", "test"):
        return _test(words, scope, run)
    body = scope.functions.get(name)
    if body is not None:
        return _call(body, words[1:], scope, run)
    inner = scope.copy()
    for assignment in node.assignments:
        assign(assignment, inner)
        inner.exported.add(assignment.name)
    texts = tuple((expand_text(word, scope), word.line) for word in node.texts)
    run.started.append(Started(words=tuple(words), line=node.line, scope=inner, texts=texts, notes=node.notes))
    return None


def _call(body: Block, arguments: Sequence[Text], scope: Scope, run: _Run) -> bool | None:
    outer = scope.positional
    scope.positional = list(arguments)
    try:
        return _block(body, scope, run)
    except PathEnds:
        return None
    finally:
        scope.positional = outer


def _leave(words: Sequence[Text], scope: Scope, run: _Run, line: int) -> bool | None:
    raise PathEnds


def _eval(words: Sequence[Text], scope: Scope, run: _Run, line: int) -> bool | None:
    try:
        nodes = ShellParser(joined(words[1:], " ").source, line).script()
    except (ShellSyntaxError, RecursionError):
        return None
    return _block(nodes, scope, run)


BUILTINS: dict[str, Callable[[Sequence[Text], Scope, _Run, int], bool | None]] = {
    "exit": _leave, "return": _leave, "eval": _eval,
}  # fmt: skip
_HANDLERS: dict[type[Node], Callable[[Any, Scope, _Run], bool | None]] = {
    Simple: _simple, Both: _both, Not: _not, Pipe: _pipe, Group: _group, If: _if, For: _for, While: _while,
    CaseOf: _case, Function: _function,
}  # fmt: skip
