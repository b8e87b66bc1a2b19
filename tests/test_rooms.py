"""The house rules, read from the source by tools/rooms.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tools" / "rooms.py"


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rooms"] = module
    spec.loader.exec_module(module)
    return module


def house(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_house_keeps_its_rules() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "0 circles" in done.stdout


def test_a_circle_hidden_under_type_checking_is_found(rooms: ModuleType, tmp_path: Path) -> None:
    house(tmp_path, {
        "tuner/a/one.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tuner.b.two import Two\n",
        "tuner/b/two.py": "def late():\n    from tuner.a.one import One\n",
        "tuner/a/__init__.py": "", "tuner/b/__init__.py": "",
    })  # fmt: skip
    assert rooms.cycles(rooms.read_house(tmp_path)) == [["tuner.a", "tuner.b"]]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({f"tuner/loose_{n}.py": "" for n in range(6)}, "6 loose modules"),
        ({f"models/full/m{n}.py": "" for n in range(17)}, "models.full holds 17 modules"),
        ({"planner/a.py": "import tuner.cli.main", "tuner/cli/main.py": ""}, "imports the command line"),
        ({f"tuner/{n}/same.py": "" for n in "abc"}, "3 modules are called same"),
        ({f"tuner/{n}/{n}.py": "class Same: ..." for n in "ab"}, "2 public classes are called Same"),
    ],
    ids=["loose", "full", "command line", "module name", "class name"],
)
def test_each_rule_can_be_broken(rooms: ModuleType, tmp_path: Path, files: dict[str, str], says: str) -> None:
    house(tmp_path, files)
    assert any(says in complaint for complaint in rooms.complaints(rooms.read_house(tmp_path)))


def floors() -> dict[str, int]:
    """Return the line of the picture in docs/structure.md on which each room stands."""
    package, floor = "", {}
    picture = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8").split("```")[1]
    for number, line in enumerate(picture.splitlines()):
        name, bar, rooms = line.partition("|")
        package = name.strip() or package
        floor |= {f"{package}.{room.replace('/', '.')}": number for room in rooms.split() if bar}
    return floor


def test_the_picture_shows_every_room_above_what_it_imports(rooms: ModuleType) -> None:
    house, floor = rooms.read_house(), floors()
    unlike = set(floor) ^ {room for room in house.rooms if "." in room}
    assert not unlike, f"rooms that only docs/structure.md or only the source has: {unlike}"
    upward = [f"{importer} -> {imported}" for importer, imported in house.arrows
              if importer in floor and imported in floor and floor[importer] >= floor[imported]]  # fmt: skip
    assert not upward, f"imports that docs/structure.md draws upward: {upward}"


def test_every_room_has_its_line(rooms: ModuleType) -> None:
    table = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8").partition("## What each room knows")[2]
    table = table.partition("\n## ")[0]
    for room in rooms.read_house().rooms:
        package, _, rest = room.partition(".")
        if rest and rest != "__main__":
            assert f"`{rest}`" in table or f"{package}/{rest.partition('.')[0]}" in table, (
                f"{room} has no line in docs/structure.md"
            )


def test_no_two_test_modules_share_a_name() -> None:
    """Pytest imports them by their base names: of two alike the whole run collects one."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}
