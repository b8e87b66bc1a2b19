"""Finds the SGLang servers of a supervisord configuration: each program's command with its environment."""

from __future__ import annotations

import configparser
import re

from planner.launch_lines.servers import FoundServer, servers_of_script
from planner.shell.scope import Scope
from planner.shell.values import Text

PROGRAM = re.compile(r"^\[program:[^\]]+\]\s*$", re.MULTILINE)
# %(ENV_PORT)s is the PORT of the environment, %(program_name)s supervisord's own: to a reader both are variables.
_EXPANSION = re.compile(r"%\((?:ENV_)?([A-Za-z_]\w*)\)[sd]")
_SETTING = re.compile(r"""([A-Za-z_]\w*)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^,\s]*))""")


def servers_of_supervisor(text: str, scope: Scope) -> list[FoundServer]:
    """Return the servers that the programs start; none if the text is not a supervisord configuration."""
    parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(" ;",))
    try:
        parser.read_string(text)
    except configparser.Error:
        return []
    servers: list[FoundServer] = []
    for section in parser.sections():
        command = parser.get(section, "command", fallback="")
        if not section.startswith("program:") or not command:
            continue
        inside = scope.copy()
        for name, *values in _SETTING.findall(parser.get(section, "environment", fallback="")):
            inside.variables[name] = Text(next((value for value in values if value), ""))
            inside.exported.add(name)
        line = text.count("\n", 0, max(0, text.find(f"[{section}]"))) + 1
        script = _EXPANSION.sub(r"${\1}", command).replace("%%", "%").replace("\n", " ")
        servers += servers_of_script(script, inside, line)
    return servers
