"""Writes the reference pages that code and schemas know: the command line, SGLang's rules, the JSON documents.

    python tools/write_reference.py            write cli.md, rules.md and json.md in docs/reference
    python tools/write_reference.py --check    fail if a page is not what the code says

A test runs the check.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from planner.rules import RULES
from planner.rules.core import Rule
from planner.violation import Severity

PAGES = Path(__file__).parent.parent / "docs" / "reference"
NOTE = """Written by `python tools/write_reference.py` from the code.

Exit codes: 0 done; 1 failed while working, or `verify` disagrees; 2 bad usage or input, and nothing was started; 3 the
target cannot be met, and the nearest answer is given; 130 interrupted, resumable.
"""
MEANING = {
    Severity.ERROR: "SGLang refuses the launch, or fails",
    Severity.WARNING: "it runs, but worse than it could",
    Severity.NOTE: "SGLang changes what was asked",
}


def command_line() -> str:
    """Return the page of all commands, as typer writes it."""
    command = [sys.executable, "-m", "typer", "tuner.cli.main", "utils", "docs", "--name", "sgtune", "--title",
               "Command line"]  # fmt: skip
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "COLUMNS": "200", "TERM": "dumb"}
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    text = html.unescape(process.stdout)
    head, _, rest = text.partition("\n")
    return re.sub(r"[ \t]+\n", "\n", f"{head}\n\n{NOTE}{rest}").rstrip() + "\n"


def rules() -> str:
    """Return the page of all rules, by severity."""
    lines = [
        "# Rules",
        "",
        f"What `sgtune check`, `plan` and `tune` know of SGLang's argument checks: {len(RULES)} rules, written by "
        "`python tools/write_reference.py` from `planner/rules`. `{...}` is filled in with the values of the launch. "
        "The place is in SGLang 0.5.23's source.",
    ]
    for severity in Severity:
        of_severity = [rule for rule in RULES if rule.severity is severity]
        lines += ["", f"## {severity}: {MEANING[severity]} ({len(of_severity)})", ""]
        lines += ["| rule | what | fix | SGLang | in its source |", "|---|---|---|---|---|"]
        lines += [_row(rule) for rule in of_severity]
    return "\n".join(lines) + "\n"


def _row(rule: Rule) -> str:
    cells = (f"`{rule.id}`", rule.sentence, rule.fix, _versions(rule), f"`{rule.source}`")
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _versions(rule: Rule) -> str:
    return f"{rule.since} and newer" if rule.before is None else f"{rule.since} to before {rule.before}"


def documents() -> str:
    """Return the page of all JSON documents, from their schemas."""
    lines = [
        "# JSON documents",
        "",
        "With `--json` a command prints exactly one line on stdout, the document; everything else goes to stderr. "
        "These fields are firm, further ones may come. The schemas are in [schemas](schemas/); tests hold every "
        "command to its own. Written by `python tools/write_reference.py` from them.",
    ]
    for file in sorted((PAGES / "schemas").glob("*.json")):
        schema = json.loads(file.read_text(encoding="utf-8"))
        lines += ["", f"## {schema['title']}", "", "| field | type | meaning |", "|---|---|---|"]
        lines += [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in _fields(schema, "")]
    return "\n".join(lines) + "\n"


def _fields(schema: dict[str, Any], prefix: str) -> list[tuple[str, str, str]]:
    """Return name, type and meaning of every field, those of nested objects under dotted names."""
    rows = []
    for name, field_schema in schema.get("properties", {}).items():
        inner = next((kind for kind in field_schema.get("anyOf", ()) if kind.get("type") != "null"), field_schema)
        items = inner.get("items", {}) if inner.get("type") == "array" else {}
        mark = "[]" if items else ""
        rows.append(
            (
                f"{prefix}{name}{mark}",
                _kind(field_schema),
                field_schema.get("description") or inner.get("description", ""),
            )
        )
        rows += _fields(items or inner, f"{prefix}{name}{mark}.")
    return rows


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(kind) for kind in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    return str(schema.get("type", "any"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    stale = []
    for name, text in (("cli.md", command_line()), ("rules.md", rules()), ("json.md", documents())):
        page = PAGES / name
        if options.check:
            if not page.exists() or page.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(f"docs/reference: {', '.join(stale)}: run python tools/write_reference.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
