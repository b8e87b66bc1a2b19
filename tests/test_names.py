"""Variables are called what they hold: tools/names.py lists those that hide it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "tools" / "names.py"


@pytest.fixture(scope="module")
def names() -> ModuleType:
    spec = importlib.util.spec_from_file_location("names", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["names"] = module
    spec.loader.exec_module(module)
    return module


def of_module(names: ModuleType, root: Path, text: str) -> list[str]:
    (root / "models").mkdir()
    (root / "models" / "sample.py").write_text(text)
    variables: list[str] = names.vague_variables(root)
    return variables


def test_no_variable_hides_what_it_holds(names: ModuleType) -> None:
    variables = names.vague_variables()
    assert not variables, "call these what they hold:\n" + "\n".join(variables)


@pytest.mark.parametrize(
    "text",
    [
        "def f(found): ...",
        "def f(*, given=1): ...",
        "def f(*seen): ...",
        "async def f():\n    asked = 1",
        "def f():\n    known: int = 1",
        "def f(x):\n    a, (b, said) = x",
        "def f(x):\n    for kept in x: ...",
        "def f(x):\n    return [held for held in x]",
        "def f(x):\n    return {told: 1 for told in x}",
        "def f(x):\n    with x as taken: ...",
        "def f(x):\n    try: ...\n    except ValueError as wanted: ...",
        "def f(x):\n    if (left := x): ...",
        "def f(x):\n    match x:\n        case [made, *_]: ...",
        "f = lambda done: done",
        "here = 1",
        "class C:\n    def f(self):\n        there = 1",
        "class C:\n    class D:\n        def f(self, got): ...",
    ],
)
def test_a_vague_name_is_listed_wherever_it_is_bound(names: ModuleType, tmp_path: Path, text: str) -> None:
    assert len(of_module(names, tmp_path, text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "class Point:\n    seen: int = 0",
        "def f(x):\n    x.found = 1",
        "def f(x):\n    return x.asked(done=1)",
        "def kept(): ...",
        "def f(found_servers, asked_for): ...",
        "'found = 1'  # asked",
    ],
)
def test_fields_attributes_and_longer_names_pass(names: ModuleType, tmp_path: Path, text: str) -> None:
    assert not of_module(names, tmp_path, text)
