"""Machines by name."""

from __future__ import annotations

import pytest

from hwprobe.catalogue import _table, gpu_from_catalogue, hardware_from_catalogue, hardware_names, match_gpu
from hwprobe.errors import InputError
from hwprobe.profile import Basis


@pytest.mark.parametrize(
    ("name", "gpus", "nodes", "memory_mib", "hbm_gb_s"),
    [
        ("nf5688g7", 8, 1, 143771, 4800),
        ("h200x8", 8, 1, 143771, 4800),
        ("h20x8", 8, 1, 97871, 4000),
        ("h20-3ex8", 8, 1, 143771, 4800),
        ("h100x8", 8, 1, 81559, 3350),
        ("2xh100x8", 8, 2, 81559, 3350),
        ("h800x8", 8, 1, 81559, 3350),
        ("b200x8", 8, 1, 183359, 8000),
        ("4xH200x4", 4, 4, 143771, 4800),
        ("a800x8", 8, 1, 81920, 2039),
        ("2xa800x8", 8, 2, 81920, 2039),
        ("h20-141gx8", 8, 1, 143771, 4800),
        ("rtx-pro-6000x8", 8, 1, 97887, 1597),
        ("rtx4090x8", 8, 1, 24564, 1008),
        ("H200", 8, 1, 143771, 4800),
        ("NVIDIA H200", 8, 1, 143771, 4800),
        ("8 x H100 80GB", 8, 1, 81559, 3350),
        ("8\u00d7H20", 8, 1, 97871, 4000),
        ("2x8xH100", 8, 2, 81559, 3350),
        ("16xH100", 8, 2, 81559, 3350),
        ("gb200", 4, 1, 189471, 8000),
        ("gb200x8", 4, 2, 189471, 8000),
        ("GB300-NVL72", 4, 18, 284208, 8000),
    ],
)
def test_known_machines(name: str, gpus: int, nodes: int, memory_mib: float, hbm_gb_s: float) -> None:
    machine = hardware_from_catalogue(name)
    assert (machine.gpus_per_node, machine.nodes, machine.gpu_count) == (gpus, nodes, gpus * nodes)
    assert {(gpu.memory_mib.value, gpu.hbm_gb_s.value) for gpu in machine.gpus} == {(memory_mib, hbm_gb_s)}


def test_founding_server_is_what_its_vendor_says_and_admits_what_is_assumed() -> None:
    gpu = hardware_from_catalogue("nf5688g7").gpus[0]
    assert gpu.nvlink_gb_s is not None
    assert gpu.nvlink_gb_s.value * 2 == 900  # both directions together
    assert gpu.hbm_gb_s.basis is Basis.CATALOGUE
    assert gpu.bf16_tflops.basis is Basis.ASSUMED
    assert any("does not name its GPU" in warning for warning in hardware_from_catalogue("nf5688g7").warnings)


@pytest.mark.parametrize("key", list(_table("gpus.toml")))
def test_every_entry_is_complete(key: str) -> None:
    gpu = gpu_from_catalogue(key)
    assert gpu.memory_mib.value > 1000
    assert gpu.hbm_gb_s.source


@pytest.mark.parametrize("name", hardware_names())
def test_every_suggested_name_works(name: str) -> None:
    assert hardware_from_catalogue(name).gpu_count >= 4


@pytest.mark.parametrize(
    ("name", "hint"),
    [("h2000x8", "h200x8"), ("nf5688", "nf5688g7"), ("H20x", "h20x8"), ("zzzz", "known:"), ("h200x99", "1 to 16"),
     ("999xh200x8", "1 to 64"), ("h200x0", "1 to 16")],
)  # fmt: skip
def test_unknown_names_get_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        hardware_from_catalogue(name)


def test_an_unknown_machine_is_told_what_a_hardware_json_holds() -> None:
    with pytest.raises(
        InputError, match=r"hardware\.json.*memory_mib, hbm_gb_s, bf16_tflops.*\"basis\": \"catalogue\""
    ):
        hardware_from_catalogue("gaudi3x8")


def test_trays_of_one_rack_are_linked_by_nvlink_and_racks_by_the_network() -> None:
    links = {name: hardware_from_catalogue(name).internode_gb_s for name in ("4xgb200x4", "2xgb200-nvl72", "2xh200x8")}
    assert {name: link.value for name, link in links.items() if link} == {
        "4xgb200x4": 900, "2xgb200-nvl72": 50, "2xh200x8": 50,
    }  # fmt: skip


def test_a_reading_that_could_be_another_is_said() -> None:
    assert any("2xh200x8" in text for text in hardware_from_catalogue("2xH200").warnings)
    assert any("8 GPUs" in text for text in hardware_from_catalogue("H200").warnings)
    assert hardware_from_catalogue("h200x8").warnings == ()


def test_cards_that_share_a_name_or_a_size_are_told_apart() -> None:
    assert match_gpu("NVIDIA H20", 97871) == "h20"
    assert match_gpu("NVIDIA H20", 143771) == "h20-3e"
    assert match_gpu("NVIDIA H200", 143771) == "h200"
    assert match_gpu("NVIDIA GH200 480GB", 97871) is None
    assert match_gpu("NVIDIA GeForce RTX 4090", 24564) is None
