"""The rooms of the house, read from the source: what they hold, what they import, and what breaks the house rules.

    python tools/rooms.py            rooms, their modules and the rooms they import; then every complaint
    python tools/rooms.py --arrows   one line per pair of rooms: which import makes the arrow

A room is a folder of one of the five packages; a module that lies in a package's own folder is a room of its own.
Imports under TYPE_CHECKING and inside functions count. Exit code 1 when there is a complaint.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hwprobe", "models", "planner", "tuner", "dashboard")
MOST_MODULES = 16
MOST_LOOSE_IN_TUNER = 5
MOST_OF_ONE_NAME = 2
# Every command's own module may share its name with the part it commands, but a name with three meanings has none.
NAMELESS = ("__init__", "__main__")


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One module that imports another, by their dotted names."""

    importer: str
    imported: str


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """All modules by dotted name (packages included), and every import between them."""

    files: dict[str, Path]
    imports: tuple[Import, ...]

    def room(self, module: str) -> str:
        """Return the room of a module: its folder, or itself where it lies in a package's own folder."""
        if self.files[module].name == "__init__.py":
            return module
        folder, _, _ = module.rpartition(".")
        return folder if "." in folder else module

    @property
    def rooms(self) -> dict[str, list[str]]:
        """Return the modules of every room, `__init__` not counted."""
        rooms: dict[str, list[str]] = defaultdict(list)
        for module, path in sorted(self.files.items()):
            if path.name != "__init__.py":
                rooms[self.room(module)].append(module)
        return dict(rooms)

    @property
    def arrows(self) -> dict[tuple[str, str], list[Import]]:
        """Return the imports behind each pair of rooms."""
        arrows: dict[tuple[str, str], list[Import]] = defaultdict(list)
        for each in self.imports:
            pair = (self.room(each.importer), self.room(each.imported))
            if pair[0] != pair[1]:
                arrows[pair].append(each)
        return dict(arrows)


def read_house(root: Path = ROOT) -> House:
    """Read every module of the five packages."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
    }
    imports = [
        Import(importer=module, imported=other)
        for module, path in files.items()
        for name in imported_names(path)
        if (other := _module_of(name, files)) and other != module
    ]
    return House(files=files, imports=tuple(imports))


def imported_names(path: Path) -> Iterator[str]:
    """Yield every dotted name a file imports: for `from a import b` it is `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_of(name: str, files: dict[str, Path]) -> str | None:
    """Return the module a dotted name lies in, None for what is not ours."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None


def cycles(house: House) -> list[list[str]]:
    """Return the groups of rooms that import each other in a circle."""
    after: dict[str, set[str]] = defaultdict(set)
    for importer, imported in house.arrows:
        after[importer].add(imported)
    reached = {room: _reached(room, after) for room in list(after)}
    groups = {frozenset(other for other in reached[room] if room in reached.get(other, ())) for room in reached}
    return [sorted(group) for group in groups if group]


def _reached(room: str, after: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = [room]
    while waiting:
        for other in after.get(waiting.pop(), ()):
            if other not in reached:
                reached.add(other)
                waiting.append(other)
    return reached


def public_classes(house: House) -> dict[str, list[str]]:
    """Return the modules that define each public class name."""
    names: dict[str, list[str]] = defaultdict(list)
    for module, path in sorted(house.files.items()):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                names[node.name].append(module)
    return dict(names)


def complaints(house: House) -> list[str]:
    """Return every break of the house rules, in words."""
    broken_rules = [f"rooms import each other in a circle: {', '.join(group)}" for group in cycles(house)]
    broken_rules += [
        f"{room} holds {len(modules)} modules, {MOST_MODULES} at most"
        for room, modules in house.rooms.items()
        if len(modules) > MOST_MODULES
    ]
    loose = [room for room in house.rooms if room.count(".") == 1 and room.startswith("tuner.") and room in house.files]
    loose = [room for room in loose if house.files[room].name != "__init__.py"]
    if len(loose) > MOST_LOOSE_IN_TUNER:
        broken_rules.append(
            f"tuner/ holds {len(loose)} loose modules, {MOST_LOOSE_IN_TUNER} at most: {', '.join(loose)}"
        )
    broken_rules += [
        f"{each.importer} imports the command line ({each.imported})"
        for each in house.imports
        if each.imported.startswith("tuner.cli") and not each.importer.startswith("tuner.cli")
    ]
    names = Counter(module.rpartition(".")[2] for module in house.files)
    broken_rules += [
        f"{count} modules are called {name}"
        for name, count in names.items()
        if count > MOST_OF_ONE_NAME and name not in NAMELESS
    ]
    broken_rules += [
        f"{len(modules)} public classes are called {name}: {', '.join(modules)}"
        for name, modules in public_classes(house).items()
        if len(modules) > 1
    ]
    return broken_rules


def sizes(house: House) -> str:
    """Return the sizes of files and functions in one sentence."""
    files = {module: path.read_text(encoding="utf-8").count("\n") for module, path in house.files.items()}
    functions = {
        f"{module}.{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module, path in house.files.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    longest, longest_function = max(files, key=files.__getitem__), max(functions, key=functions.__getitem__)
    return (
        f"{len(files)} modules, median {statistics.median(files.values()):.0f} lines, longest {longest} "
        f"({files[longest]}); {len(functions)} functions, median {statistics.median(functions.values()):.0f} lines, "
        f"longest {longest_function} ({functions[longest_function]})"
    )


def main(arguments: list[str]) -> int:
    house = read_house()
    if "--arrows" in arguments:
        for (importer, imported), behind in sorted(house.arrows.items()):
            print(f"{importer} -> {imported}: {behind[0].importer} imports {behind[0].imported}")
        return 0
    for room, modules in sorted(house.rooms.items()):
        others = sorted({imported for importer, imported in house.arrows if importer == room})
        print(f"{room} ({len(modules)}) <- {', '.join(others) or 'nothing'}")
    print(f"\n{len(house.rooms)} rooms, {len(house.arrows)} arrows, {len(cycles(house))} circles\n{sizes(house)}")
    broken_rules = complaints(house)
    print("\n".join(f"complaint: {each}" for each in broken_rules) or "no complaint")
    return 1 if broken_rules else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
