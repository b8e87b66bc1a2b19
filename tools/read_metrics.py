"""Read the Prometheus metrics of SGLang releases into tuner/emulator/metrics.json.

    python tools/read_metrics.py sglang-0.4.3.post2-*.whl ... sglang-0.5.23-*.whl

Give one wheel of every release to be read, fetched with `pip download --no-deps sglang==RELEASE`. Nothing of SGLang is
run: its collectors' sources are parsed. The file says of every metric its type, the labels it adds to its process's
own, its buckets, and the first and last release read that has it.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

from packaging.version import Version

HOME = Path(__file__).resolve().parent.parent
TARGET = HOME / "tuner" / "emulator" / "metrics.json"
SOURCES = ("sglang/srt/observability/metrics_collector.py", "sglang/srt/metrics/collector.py")
# The collectors of the scheduler and of the front end; those of storage, encoders and caches are not served.
CLASSES = ("SchedulerMetricsCollector", "TokenizerMetricsCollector")
TYPES = ("Counter", "Gauge", "Histogram", "Summary")
PREFIX = "sglang:"


def read_wheel(path: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return a wheel's release, and its metrics by name."""
    release = path.name.split("-")[1]
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        source = archive.read(next(name for name in SOURCES if name in names)).decode()
    metrics: dict[str, dict[str, Any]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name in CLASSES:
            metrics |= _of_class(node, "scheduler" if node.name.startswith("Scheduler") else "front end")
    return release, metrics


def _of_class(node: ast.ClassDef, process: str) -> dict[str, dict[str, Any]]:
    lists = {
        target.id: literal
        for assigned in ast.walk(node)
        if isinstance(assigned, ast.Assign) and (literal := _numbers(assigned.value)) is not None
        for target in assigned.targets
        if isinstance(target, ast.Name)
    }
    metrics = {}
    for call in ast.walk(node):
        kind = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
        if not isinstance(call, ast.Call) or kind not in TYPES:
            continue
        arguments = {keyword.arg: keyword.value for keyword in call.keywords}
        name = arguments.get("name") or (call.args[0] if call.args else None)
        if not isinstance(name, ast.Constant) or not str(name.value).startswith(PREFIX):
            continue
        metrics[str(name.value).removeprefix(PREFIX)] = {
            "type": kind.lower(),
            "process": process,
            "labels": _strings(arguments.get("labelnames")),
            "buckets": _buckets(arguments.get("buckets"), lists),
            "by_pid": kind == "Gauge" and "multiprocess_mode" not in arguments,
        }
    return metrics


def _numbers(node: ast.AST | None) -> list[float] | None:
    if not isinstance(node, ast.List | ast.Tuple):
        return None
    values = [item.value for item in node.elts if isinstance(item, ast.Constant)]
    return [float(value) for value in values] if values and len(values) == len(node.elts) else None


def _buckets(node: ast.AST | None, lists: dict[str, list[float]]) -> list[float] | None:
    """Return a histogram's buckets: written out, named, or the default handed to a function that makes them."""
    if node is None:
        return None
    literal = _numbers(node)
    if literal is not None:
        return literal
    named = [lists[part.id] for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in lists]
    return named[0] if named else None


def _strings(node: ast.AST | None) -> list[str]:
    if node is None:
        return []
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def merged(releases: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one record for every metric and span of releases in which it is the same."""
    ordered = sorted(releases, key=Version)
    records: list[dict[str, Any]] = []
    for name in sorted({name for metrics in releases.values() for name in metrics}):
        current: dict[str, Any] | None = None
        for release in ordered:
            of_release = releases[release].get(name)
            if of_release is None:
                current = None
            elif current is not None and all(current[key] == value for key, value in of_release.items()):
                current["until"] = release
            else:
                current = {"name": name, **of_release, "since": release, "until": release}
                records.append(current)
    return records


def main(paths: list[str]) -> int:
    """Write the file; return the exit code."""
    if not paths:
        sys.stderr.write((__doc__ or "") + "\n")
        return 2
    releases = dict(read_wheel(Path(path)) for path in paths)
    lines = ",\n".join(json.dumps(record) for record in merged(releases))
    listed = json.dumps(sorted(releases, key=Version))
    TARGET.write_text(f'{{"releases": {listed}, "metrics": [\n{lines}\n]}}\n', encoding="utf-8")
    sys.stdout.write(f"{TARGET.relative_to(HOME)}: {len(releases)} releases\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
