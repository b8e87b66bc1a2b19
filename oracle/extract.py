"""Takes pieces out of a release's files to run them where the file cannot be imported: it wants kernels or a model."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def tree_of(file: Path) -> ast.Module | None:
    """Return the syntax of a file, None where the release has no such file."""
    return ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None


def function_of(file: Path, name: str) -> ast.FunctionDef | None:
    """Return a function of a file, a method of a class too; None where there is none of that name."""
    tree = tree_of(file)
    if tree is None:
        return None
    return next((node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name), None)


def plain(function: ast.FunctionDef) -> ast.FunctionDef:
    """Return it without annotations and imports of its own: the names it needs are given to it."""
    for argument in function.args.args:
        argument.annotation = None
    function.returns = None
    function.decorator_list = []
    function.body = [node for node in function.body if not isinstance(node, ast.ImportFrom)]
    return function


def run(nodes: list[ast.stmt], file: Path, names: dict[str, object]) -> None:
    """Run statements with these names. Raises what they raise."""
    exec(compile(ast.Module(body=nodes, type_ignores=[]), str(file), "exec"), names)
