"""The JSON document of `sgtune advise --json`."""

from __future__ import annotations

import shlex
from typing import Any

from planner.sglang.secret_flags import without_secrets
from tuner.advise.look import AdviseAnswer, ServerAnswer, expected_of


def advise_document(answer: AdviseAnswer) -> dict[str, Any]:
    """Return an answer as JSON-ready values; field names are a contract.

    `observed` and `expected` at the top are those of the server with the first finding, or of the first server.
    """
    documents = [server_document(server) for server in answer.servers]
    name = answer.findings[0].server if answer.findings else ""
    top = next((each for each in documents if each["name"] == name), documents[0] if documents else {})
    return {
        "servers": documents,
        "observed": top.get("observed"),
        "expected": top.get("expected"),
        "findings": [finding.document() for finding in answer.findings],
        "simulated": any(server.simulated for server in answer.servers),
    }


def server_document(server: ServerAnswer) -> dict[str, Any]:
    """Return one server: what runs, what was seen, what is expected."""
    facts, launched = server.facts, server.launched
    info = facts.info
    command = info.get("launch_command")
    return {
        "name": facts.name,
        "engine": facts.engine or None,
        "version": str(info.get("version") or facts.loads.get("version") or "") or None,
        "model": str(info.get("served_model_name") or info.get("model_path") or "") or None,
        "accelerator": facts.loads.get("accelerator"),
        "hardware": launched.hardware.name if launched else None,
        "config": launched.config.as_dict() if launched else None,
        "launch": _line(command) if isinstance(command, str) else None,
        "kv_tokens": launched.kv_tokens if launched else None,
        "assumed": list(launched.assumed) if launched else [],
        "simulated": server.simulated,
        "notes": list(facts.notes),
        "observed": server.seen.document() if server.seen else None,
        "expected": expected_of(server),
        "unexpected": server.unexpected,
        "capacity": server.capacity.document() if server.capacity else None,
        "slos": [each.document() for each in server.slos],
        "violations": [
            {"rule": v.rule, "severity": str(v.severity), "message": v.message, "fix": v.fix}
            for v in (launched.checked.violations if launched else ())
        ],
    }


def _line(command: str) -> str:
    try:
        return shlex.join(without_secrets(shlex.split(command[:20_000])))
    except ValueError:
        return ""
