"""YAML whose texts know their line, with the placeholders of templates ({{ .Values.tp }}) kept as text."""

from __future__ import annotations

import re
from typing import Any

from hwprobe.errors import InputError
from hwprobe.parsing import ODD, check_yaml, said

_TEMPLATE_LINE = re.compile(r"^[ \t]*(?:-[ \t]+)?\{\{-?[^{}]*-?\}\}[ \t]*$")
_TEMPLATE = re.compile(r"\{\{.*?\}\}")
_HELD = re.compile(r"__TEMPLATE_(\d+)__")


class Placed(str):
    """A text of a YAML file and the line where its content begins."""

    __slots__ = ("line",)
    line: int


def read_yaml(text: str, name: str, first_line: int = 1) -> list[Any]:
    """Return the documents of a YAML text, every text a Placed. Raises InputError for what is no YAML."""
    import yaml  # late: most launches come without YAML, and it takes its time

    templates: list[str] = []
    plain = _templates_held(text, templates)

    class Loader(yaml.SafeLoader):
        """SafeLoader whose texts know their line."""

    def construct(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Placed:
        return _placed(loader.construct_scalar(node), node, templates, first_line)

    Loader.add_constructor("tag:yaml.org,2002:str", construct)
    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    check_yaml(plain, name)
    try:
        return list(yaml.load_all(plain, Loader))  # a SafeLoader
    except (yaml.YAMLError, *ODD) as error:
        raise InputError(f"'{name}' is not valid YAML: {said(error)}") from None


def _placed(value: Any, node: Any, templates: list[str], first_line: int) -> Placed:
    restored = _HELD.sub(lambda match: templates[int(match[1])], str(value))
    placed = Placed(restored)
    placed.line = first_line + node.start_mark.line + (1 if node.style in ("|", ">") else 0)
    return placed


def _templates_held(text: str, templates: list[str]) -> str:
    """Replace every {{ ... }} by a plain word; lines that hold only control structures are left empty."""
    if "{{" not in text:
        return text

    def hold(match: re.Match[str]) -> str:
        templates.append(match[0])
        return f"__TEMPLATE_{len(templates) - 1}__"

    rows = []
    for row in text.split("\n"):
        control = _TEMPLATE_LINE.match(row) and re.search(
            r"\{\{-?\s*(?:if|else|end|range|with|define|include|toYaml)", row
        )
        rows.append("" if control else _TEMPLATE.sub(hold, row))
    return "\n".join(rows)
