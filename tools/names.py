"""Variables that hide what they hold: `found`, `asked`, `said` and their like.

    python tools/names.py     one line each: file, line, function and name; then how many

Parameters, local variables and globals of the five packages and of the scripts beside them count, those of loops and
comprehensions among them; attributes and fields do not. Exit code 1 when there is one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("hwprobe", "models", "planner", "tuner", "dashboard", "tools", "oracle", "sglang_cpu", "benchmarks")
# Each says how a value came about, or where it is, and leaves open what it is.
VAGUE = frozenset({
    "asked", "done", "found", "given", "got", "held", "here", "kept", "known", "left", "made", "meant", "said", "seen",
    "taken", "there", "thing", "told", "wanted", "went",
})  # fmt: skip


def vague_variables(root: Path = ROOT) -> list[str]:
    """Return `file:line function: name` of every vague variable, in order."""
    return [
        f"{path.relative_to(root)}:{line} {function}: {name}"
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
        for line, function, name in sorted(set(_bound(ast.parse(path.read_text(encoding="utf-8")))))
        if name in VAGUE
    ]


def _bound(node: ast.AST, function: str = "module") -> Iterator[tuple[int, str, str]]:
    """Yield line, function and name of every variable that a node and those below it bind."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        function = node.name
    elif isinstance(node, ast.ClassDef):
        for statement in node.body:
            if not isinstance(statement, ast.Assign | ast.AnnAssign):  # fields
                yield from _bound(statement, function)
        return
    name = None
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        name = node.id
    elif isinstance(node, ast.arg):
        name = node.arg
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        name = node.name
    if name is not None:
        yield getattr(node, "lineno", 0), function, name
    for child in ast.iter_child_nodes(node):
        yield from _bound(child, function)


def main() -> int:
    variables = vague_variables()
    print("\n".join([*variables, f"{len(variables)} variables are called by one of {', '.join(sorted(VAGUE))}"]))
    return 1 if variables else 0


if __name__ == "__main__":
    sys.exit(main())
