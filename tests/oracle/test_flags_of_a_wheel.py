"""A release's flags are read from its wheel alone, and added to the listed ones without reading those again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "oracle"))

from merge_flags import TARGET, merged, order, read_dump, read_listed, text_of  # noqa: E402 - beside the packages

SERVER_ARGS = """
import argparse
import torch.nn as nn
from transformers import AutoConfig
from no_such_library.deep import Thing, helper


class Kept(nn.Module):
    pass


class ServerArgs:
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--tensor-parallel-size", "--tp-size", type=int, default=1)
        parser.add_argument("--mode", choices={"b", "a", "c"}, default="a")
        parser.add_argument("--new-switch", action="store_true")
"""


def test_what_is_listed_is_written_again_as_it_stands() -> None:
    assert text_of(*merged(read_listed())) == TARGET.read_text(encoding="utf-8")


def test_a_wheel_is_read_without_what_sglang_imports(tmp_path: Path) -> None:
    release = tmp_path / "9.9.9"
    (release / "sglang" / "srt").mkdir(parents=True)
    for package in ("sglang", "sglang/srt"):
        (release / package / "__init__.py").touch()
    (release / "sglang" / "srt" / "server_args.py").write_text(SERVER_ARGS)
    reader = [sys.executable, str(ROOT / "oracle" / "light_flags.py"), str(tmp_path), str(release)]
    ran = subprocess.run(reader, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    flags = {flag["dest"]: flag for flag in read_dump(tmp_path / "9.9.9.json")}
    assert flags["tp_size"] == {
        "dest": "tp_size", "names": ["--tensor-parallel-size", "--tp-size"], "type": "int", "default": 1,
    }  # fmt: skip
    assert set(flags["mode"]["choices"]) == {"a", "b", "c"}
    assert flags["new_switch"]["const"] is True


def test_a_further_release_continues_what_looks_the_same_and_adds_what_is_new() -> None:
    listed = read_listed()
    newest = max(listed, key=order)
    flags = [dict(flag) for flag in listed[newest]]
    shuffled = [flag | {"choices": flag["choices"][::-1]} if "choices" in flag else flag for flag in flags]
    releases, records = merged({**listed, "9.9.9": [*shuffled, {"dest": "brand_new", "names": ["--brand-new"]}]})
    assert releases[-1] == "9.9.9"
    last = [record for record in records if record["until"] == "9.9.9"]
    assert len(last) == len(flags) + 1
    assert [record for record in last if record["since"] == "9.9.9"] == [
        {"dest": "brand_new", "names": ["--brand-new"], "since": "9.9.9", "until": "9.9.9"}
    ]
    assert json.dumps(records)
