"""Dependency direction and fences, read from the source: a wrong import fails here, not in review."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("hwprobe", "models", "planner", "tuner", "dashboard")
HEAVY = {
    "torch": ("hwprobe",),
    "pynvml": ("hwprobe",),
    "optuna": ("tuner/search/optuna_study.py", "tuner/search/model_sampler.py"),
    "ray": ("tuner/cluster/ray_pool.py",),
    "sklearn": ("tuner/search/gaussian_process.py",),
    "streamlit": ("dashboard",),
    "plotly": ("dashboard",),
    "pandas": ("dashboard",),
    "sglang": (),
}


def sources() -> list[Path]:
    return [path for package in ORDER for path in (ROOT / package).rglob("*.py")]


def imported(path: Path) -> Iterator[str]:
    """Yield the top-level names a file imports, importlib.import_module included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", "") == "import_module"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value).split(".")[0]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left_and_stay_behind_their_fence(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    package = place.split("/")[0]
    allowed = ORDER[: ORDER.index(package) + 1]
    for name in imported(path):
        assert name not in ORDER or name in allowed, f"{place} imports {name}, which lies to its right"
        fence = HEAVY.get(name)
        assert fence is None or place.startswith(fence), f"{place} imports {name}, allowed only in {fence}"


def test_the_scan_sees_the_code() -> None:
    assert len(sources()) > 40
    assert "pynvml" in set(imported(ROOT / "hwprobe" / "inventory" / "nvml.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 400, f"{path} has {len(lines)} lines: does it hold two ideas?"


def test_public_functions_and_classes_of_the_core_say_what_they_are() -> None:
    silent = []
    for package in ("hwprobe", "models", "planner"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert ast.get_docstring(tree), f"{path} has no module docstring"
            for node in tree.body:
                public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
                if public and not ast.get_docstring(node) and node.end_lineno - node.lineno > 8:
                    silent.append(f"{path.name}:{node.name}")
    assert silent == []
