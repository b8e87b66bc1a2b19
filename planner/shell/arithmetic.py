"""Integer arithmetic of a shell: `$((TP * NODES))` of values that are known."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

LARGEST = 10**15
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip


def names_in(text: str) -> list[str]:
    """Return the variables an expression names without a dollar."""
    return _NAME.findall(text)


def evaluate(text: str, values: dict[str, int]) -> int | None:
    """Return the value of an expression, or None if it is not plain integer arithmetic."""
    plain = text.strip().replace("&&", " and ").replace("||", " or ").replace("/", "//").replace("\n", " ")
    plain = _conditional(re.sub(r"!(?!=)", " not ", plain)).strip()
    plain = re.sub(r"(?<![\w])0+(?=\d)", "", plain)
    if len(plain) > 500:
        return None
    try:
        result = _value(ast.parse(plain, mode="eval").body, values)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return result if result is not None and abs(result) <= LARGEST else None


def _conditional(text: str) -> str:
    """Write `a ? b : c` as Python does; the first question mark outside brackets ends the condition."""
    depth, open_questions, question = 0, 0, -1
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth:
            continue
        if char == "?":
            question, open_questions = (place if question < 0 else question), open_questions + 1
        elif char == ":" and question >= 0:
            open_questions -= 1
            if not open_questions:
                then, other = _conditional(text[question + 1 : place]), _conditional(text[place + 1 :])
                return f"(({then}) if ({text[:question]}) else ({other}))"
    return text


def _value(node: ast.expr, values: dict[str, int]) -> int | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, int) and not isinstance(node.value, bool) else None
    if isinstance(node, ast.Name):
        return values.get(node.id)
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, values)
        return None if inner is None else _unary(node.op, inner)
    if isinstance(node, ast.IfExp):
        test = _value(node.test, values)
        return None if test is None else _value(node.body if test else node.orelse, values)
    if isinstance(node, ast.BoolOp):
        operands = [_value(item, values) for item in node.values]
        truths = [bool(item) for item in operands if item is not None]
        return (
            None if len(truths) < len(operands) else int(all(truths) if isinstance(node.op, ast.And) else any(truths))
        )
    if isinstance(node, ast.BinOp):
        lhs, rhs = _value(node.left, values), _value(node.right, values)
        return None if lhs is None or rhs is None else _binary(node.op, lhs, rhs)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        lhs, rhs = _value(node.left, values), _value(node.comparators[0], values)
        return None if lhs is None or rhs is None else int(_COMPARISONS[type(node.ops[0])](lhs, rhs))
    return None


def _unary(operation: ast.unaryop, inner: int) -> int | None:
    if isinstance(operation, ast.USub | ast.Not):
        return -inner if isinstance(operation, ast.USub) else int(not inner)
    return inner if isinstance(operation, ast.UAdd) else None


def _binary(operation: ast.operator, lhs: int, rhs: int) -> int | None:
    """Apply an operator as C does: division and remainder go towards zero."""
    if abs(lhs) > LARGEST or abs(rhs) > LARGEST:
        return None
    if isinstance(operation, ast.FloorDiv):
        return abs(lhs) // abs(rhs) * (1 if (lhs < 0) == (rhs < 0) else -1)
    if isinstance(operation, ast.Mod):
        return abs(lhs) % abs(rhs) * (1 if lhs >= 0 else -1)
    if isinstance(operation, ast.Pow):
        return lhs**rhs if 0 <= rhs <= 60 and abs(lhs) <= 1000 else None
    if isinstance(operation, ast.LShift | ast.RShift):
        shifted = 0 <= rhs <= 60
        return (lhs << rhs if isinstance(operation, ast.LShift) else lhs >> rhs) if shifted else None
    plain = _OPERATORS.get(type(operation))
    return None if plain is None else plain(lhs, rhs)
