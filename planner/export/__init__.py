"""Launch files: the same command as a shell script and as SGLang's own YAML configuration."""

from __future__ import annotations

from planner.export.files import Provenance, Target, export_files

__all__ = ["Provenance", "Target", "export_files"]
