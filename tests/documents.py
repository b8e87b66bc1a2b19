"""The JSON documents commands promise: validated against the schemas in docs/reference/schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = Path(__file__).parent.parent / "docs" / "reference" / "schemas"


def document_of(command: str, out: str) -> Any:
    """Return the document a command printed. Raises AssertionError unless it is one line that keeps its schema."""
    lines = out.splitlines()
    assert len(lines) == 1, f"{command} --json printed {len(lines)} lines"
    document = json.loads(lines[0])
    schema = json.loads((SCHEMAS / f"{command}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(document)
    return document
