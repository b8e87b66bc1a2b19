"""Figures beyond what is physical are refused with their range, whichever file or option holds them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from hwprobe.bounds import ENGINE, MACHINE, MODEL, POINT, WORLD, Bound, within
from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.errors import InputError
from hwprobe.files import encode_json
from hwprobe.profile import read_profile
from models.architecture import parse_architecture
from models.engine.profile import EngineParameters, load_engine_profile, shipped_profiles
from models.records.points import parse_point
from models.workload import Slo, Workload
from tuner.engines.world import load_world

R1 = Path(__file__).parents[2] / "models" / "configs" / "deepseek-r1.json"
GPU = ("memory_mib", "hbm_gb_s", "bf16_tflops", "fp8_tflops", "nvlink_gb_s", "sm_count")


def beyond(bound: Bound) -> float:
    return int(bound.most) * 1000 + 1


def refused(name: str, bound: Bound) -> Any:
    return pytest.raises(InputError, match=f"{name}.* must be from {bound}".replace("+", r"\+"))


@pytest.mark.parametrize("name", GPU)
def test_a_hardware_file_with_a_figure_no_gpu_has_is_refused(name: str, tmp_path: Path) -> None:
    machine = json.loads(encode_json(hardware_from_catalogue("h200x8")))
    machine["gpus"][3][name]["value"] = beyond(MACHINE[name])
    file = tmp_path / "hardware.json"
    file.write_text(json.dumps(machine))
    with refused(rf"hardware.json: gpus\[3\]\.{name}", MACHINE[name]):
        read_profile(file)


@pytest.mark.parametrize("name", ["nvlink_gb_s", "hbm_gb_s"])
def test_a_data_sheet_beside_a_measurement_has_the_same_range(name: str, tmp_path: Path) -> None:
    machine = json.loads(encode_json(hardware_from_catalogue("h200x8")))
    machine["gpus"][0][name]["sheet"] = beyond(MACHINE[name])
    file = tmp_path / "hardware.json"
    file.write_text(json.dumps(machine))
    with refused(f"{name}.sheet", MACHINE[name]):
        read_profile(file)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("internode_gb_s", {"value": 1e9, "basis": "assumed"}, "internode_gb_s"),
        ("p2p_gb_s", [[1e9] * 8] * 8, "p2p_gb_s"),
        ("p2p_latency_us", [[1e9] * 8] * 8, "p2p_latency_us"),
        ("host", {"cpu": "x", "logical_cpus": 10**9, "memory_gib": 1.0}, "logical_cpus"),
        (
            "all_reduce",
            [{"ranks": 2, "message_bytes": 2**50, "backend": "nccl", "time_us": {"value": 5, "basis": "measured"}}],
            "message_bytes",
        ),
    ],
)
def test_links_and_host_have_ranges_too(field: str, value: Any, name: str, tmp_path: Path) -> None:
    machine = json.loads(encode_json(hardware_from_catalogue("h200x8")))
    machine[field] = value
    file = tmp_path / "hardware.json"
    file.write_text(json.dumps(machine))
    with refused(name, MACHINE[name]):
        read_profile(file)


@pytest.mark.parametrize("name", EngineParameters.__dataclass_fields__)
def test_every_parameter_of_an_engine_profile_has_a_range(name: str, tmp_path: Path) -> None:
    profile = json.loads(encode_json(shipped_profiles()[-1]))
    profile["parameters"][name] = beyond(ENGINE[name])
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(profile))
    with refused(f"profile.json: parameters.{name}", ENGINE[name]):
        load_engine_profile(file)


def test_the_spread_of_a_profile_has_a_range(tmp_path: Path) -> None:
    profile = json.loads(encode_json(shipped_profiles()[-1]))
    file = tmp_path / "profile.json"
    for table, name in ((profile, "sigma"), (profile["relative_error"], "decode")):
        kept, table[name] = table[name], beyond(ENGINE[name])
        file.write_text(json.dumps(profile))
        with refused(name, ENGINE[name]):
            load_engine_profile(file)
        table[name] = kept


@pytest.mark.parametrize("name", ["extra_memory_gib", "boot_s", "slice_boot_s", "sigma"])
def test_a_world_has_ranges(name: str, tmp_path: Path) -> None:
    file = tmp_path / "world.toml"
    file.write_text(f"{name} = {beyond(WORLD[name])}\n")
    with refused(f"world.toml: {name}", WORLD[name]):
        load_world(file)


def test_a_world_slows_nothing_a_thousand_times(tmp_path: Path) -> None:
    file = tmp_path / "world.toml"
    for table in ({"parameters": {"tau_us": 1000.0}}, {"effects": [{"when": {"tp_size": 8}, "time_factor": 1000.0}]}):
        file.write_text(tomli_w.dumps(table))
        assert tomllib.loads(file.read_text()) == table
        with pytest.raises(InputError, match=r"must be from 0\.01 to 100"):
            load_world(file)


@pytest.mark.parametrize("name", POINT)
def test_every_number_of_a_record_has_a_range(name: str) -> None:
    with refused(f"line 7: {name}", POINT[name]):
        parse_point(json.dumps({"id": "x", "gpu": "H200", name: beyond(POINT[name])}), 7)


@pytest.mark.parametrize("name", MODEL)
def test_every_shape_of_a_model_has_a_range(name: str) -> None:
    shapes = json.loads(R1.read_text()) | {name: beyond(MODEL[name])}
    with refused(f"here: {name}", MODEL[name]):
        parse_architecture(json.dumps(shapes), "here", "x")


@pytest.mark.parametrize(
    ("asked", "flag"),
    [((10**9, 1, 1), "--isl"), ((1, 0, 1), "--osl"), ((1, 1, 10**12), "--concurrency")],
)
def test_lengths_and_clients_have_ranges(asked: tuple[int, int, int], flag: str) -> None:
    with pytest.raises(InputError, match=f"{flag} is .*it must be from 1 to 10,000,000"):
        Workload.checked(*asked)


@pytest.mark.parametrize("text", ["tpot:mean<0ms", "ttft:p99<99999999999999s"])
def test_limits_of_objectives_have_a_range(text: str) -> None:
    with pytest.raises(InputError, match=r"must be from 0\.001 to 1,000,000,000 ms"):
        Slo.parse(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 10**400])
def test_what_is_no_number_is_in_no_range(value: float) -> None:
    with pytest.raises(InputError, match=r"x is .*; it must be from 0 to 1$"):
        within(value, "x", Bound(0, 1))
