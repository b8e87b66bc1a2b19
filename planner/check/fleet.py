"""What the servers of one file or folder must have in common: prefill and decode servers that are to meet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from models.config import ServerConfig
from planner.check.verdicts import ServerVerdict
from planner.fleets.deployment import BOOTSTRAP_PORT
from planner.violation import Severity, Violation, sorted_violations

# The router's `--prefill URL PORT`, as shells and manifests write it.
ROUTED = re.compile(r"--prefill[\"']?[\s,\\-]+[\"']?http\S+?[\"']?[\s,\\-]+[\"']?(\d{2,5})\b")
# What a decode server compares with its prefill server's when they meet (disaggregation/common/conn.py), or must share.
SHARED = (
    ("kv_cache_dtype", "pd-kv-dtype", "--kv-cache-dtype"),
    ("page_size", "pd-page-size", "--page-size"),
)


def fleet_violations(verdicts: Sequence[ServerVerdict], text: str = "") -> tuple[Violation, ...]:
    """Return the violations between these servers; empty if no server has a role.

    `text` is the file itself, for the router's command in it.
    """
    configs = [verdict.answer.checked.resolved.config for verdict in verdicts if verdict.answer is not None]
    prefill, decode = (_of_role(configs, role) for role in ("prefill", "decode"))
    violations = list(_same_place(configs))
    if len(verdicts) > 1 and len(configs) == len(verdicts) and bool(prefill) != bool(decode):
        present, missing = ("prefill", "decode") if prefill else ("decode", "prefill")
        violations.append(_broken("pd-other-half", f"there are {present} servers and no {missing} server",
                             f"add a server with --disaggregation-mode {missing}"))  # fmt: skip
    if prefill and decode:
        violations += [*_shared(prefill, decode), *_layouts(prefill, decode), *_bootstrap(prefill, text)]
    return tuple(sorted_violations(violations))


def _of_role(configs: Sequence[ServerConfig], role: str) -> list[ServerConfig]:
    return [config for config in configs if config.flag("disaggregation_mode") == role]


def _broken(rule: str, message: str, fix: str) -> Violation:
    return Violation(rule=rule, severity=Severity.ERROR, message=message, fix=fix)


def _shared(prefill: Sequence[ServerConfig], decode: Sequence[ServerConfig]) -> Iterator[Violation]:
    """Yield the settings on which both sides must agree, so that decode can read prefill's KV cache."""
    for name, rule, flag in SHARED:
        one, other = ({getattr(config, name) for config in side} for side in (prefill, decode))
        if len(one | other) > 1:
            yield _broken(rule, f"{flag} is {_said(one)} on prefill and {_said(other)} on decode servers",
                          f"give both the same {flag}")  # fmt: skip
    one, other = (
        {config.flag("disaggregation_transfer_backend", "mooncake") for config in side} for side in (prefill, decode)
    )
    if len(one | other) > 1:
        flag = "--disaggregation-transfer-backend"
        yield _broken("pd-transfer-backend", f"{flag} is {_said(one)} on prefill and {_said(other)} on decode servers",
                      f"give both the same {flag}")  # fmt: skip


def _layouts(prefill: Sequence[ServerConfig], decode: Sequence[ServerConfig]) -> Iterator[Violation]:
    """Yield layouts between which no KV cache moves: MLA's latent fits any TP, layers must be split alike or not."""
    one, other = ({config.pp_size for config in side} for side in (prefill, decode))
    if any(size not in (1, *one) for size in other):
        yield _broken("pd-pipeline", f"--pp-size is {_said(other)} on decode and {_said(one)} on prefill servers",
                      "decode servers have the pipeline stages of the prefill servers, or one")  # fmt: skip


def _bootstrap(prefill: Sequence[ServerConfig], text: str) -> Iterator[Violation]:
    routed = {int(port) for port in ROUTED.findall(text)}
    own = {int(config.flag("disaggregation_bootstrap_port", BOOTSTRAP_PORT)) for config in prefill}
    if routed and not own <= routed:
        message = f"the router asks port {_said(routed)}, prefill servers listen on {_said(own)}"
        yield _broken("pd-bootstrap-port", message,
                      "name the --disaggregation-bootstrap-port of each prefill server after its URL")  # fmt: skip


def _same_place(configs: Sequence[ServerConfig]) -> Iterator[Violation]:
    """Yield ports taken twice by servers that share a node: those with a --base-gpu-id and those without."""
    shifted = [config for config in configs if config.flag("base_gpu_id")]
    for config in shifted:
        port, first = config.flag("port", 30000), int(config.flag("base_gpu_id"))
        if any(other.flag("port", 30000) == port and int(other.flag("base_gpu_id") or 0) != first for other in configs):
            yield _broken(
                "same-port", f"servers of one node both listen on port {port}", "give each a --port of its own"
            )


def _said(values: set[object] | set[int] | set[str]) -> str:
    return " and ".join(sorted(map(str, values)))
