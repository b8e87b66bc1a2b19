"""Servers of one file or folder judged together: what keeps prefill and decode servers apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Sgtune = Callable[..., Any]
SERVER = "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-R1 --trust-remote-code --tp 8"
PREFILL, DECODE = (f"{SERVER} --disaggregation-mode {role}" for role in ("prefill", "decode"))
ROUTER = (
    "python3 -m sglang_router.launch_router --pd-disaggregation --prefill http://a:30000 {} --decode http://b:30000"
)


def judged(sgtune: Sgtune, folder: Path, *lines: str) -> tuple[list[str], int]:
    (folder / "fleet.sh").write_text("".join(f"{line} &\n" for line in lines))
    ran = sgtune("check", "--hardware", "h200x8", "--json", str(folder / "fleet.sh"))
    return [item["rule"] for item in json.loads(ran.out)["fleet"]["violations"]], ran.code


@pytest.mark.parametrize(
    ("lines", "rules"),
    [
        ([PREFILL, DECODE, ROUTER.format(8998)], []),
        ([f"{PREFILL} --kv-cache-dtype fp8_e4m3", DECODE], ["pd-kv-dtype"]),
        ([f"{PREFILL} --page-size 64", DECODE], ["pd-page-size"]),
        ([f"{PREFILL} --disaggregation-transfer-backend nixl", DECODE], ["pd-transfer-backend"]),
        ([PREFILL, f"{DECODE} --attn-dp-size 8 --ep-size 8"], []),
        ([PREFILL, f"{PREFILL} --max-running-requests 8"], ["pd-other-half"]),
        ([PREFILL, DECODE, ROUTER.format(9000)], ["pd-bootstrap-port"]),
        ([f"{PREFILL} --disaggregation-bootstrap-port 9000", DECODE, ROUTER.format(9000)], []),
    ],
)
def test_two_roles_must_fit_each_other(sgtune: Sgtune, tmp_path: Path, lines: list[str], rules: list[str]) -> None:
    found, code = judged(sgtune, tmp_path, *lines)
    assert found == rules
    assert code == (3 if rules else 0)


def test_servers_of_one_node_need_ports_of_their_own(sgtune: Sgtune, tmp_path: Path) -> None:
    half = SERVER.replace("--tp 8", "--tp 4")
    same, _ = judged(sgtune, tmp_path, half, f"{half} --base-gpu-id 4")
    apart, _ = judged(sgtune, tmp_path, half, f"{half} --base-gpu-id 4 --port 30001")
    assert same == ["same-port"]
    assert apart == []
