"""What a shell is offered for --hardware, --run and --sglang-version: names there are, nothing of it loaded before."""

from __future__ import annotations

from pathlib import Path

import typer


def hardware(incomplete: str) -> list[str]:
    """Return catalogue machines, and the JSON files here, that begin so."""
    from hwprobe.catalogue import hardware_names

    files = sorted(str(file) for file in Path().glob("*.json"))
    return [name for name in [*hardware_names(), *files] if name.startswith(incomplete)]


def sglang_version(incomplete: str) -> list[str]:
    """Return the releases whose flags are known, the newest first."""
    from planner.sglang.flags import listed_releases

    return [name for name in reversed(listed_releases()) if name.startswith(incomplete)]


def run(context: typer.Context, incomplete: str) -> list[str]:
    """Return the run folders below --runs that begin so."""
    folder = Path(context.params.get("runs") or "runs")
    return sorted(file.parent.name for file in folder.glob("*/run.toml") if file.parent.name.startswith(incomplete))
