"""Defaults as SGLang resolves them, and flags as each version spells them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.errors import InputError
from models.architecture import deepseek_r1
from models.config import ServerConfig, Speculative
from models.engine.versions import profile_for
from models.machine import machine_of
from models.serving.estimate import Context
from planner.plans.space import as_launched, fill_grid, layouts, shapes
from planner.plans.space import default_space as space_of
from planner.sglang.dialects import to_argv
from planner.sglang.resolver import resolve

R1 = deepseek_r1()
NEWEST = Version("0.5.23")
GPUS = {name: machine_of(hardware_from_catalogue(f"{name}x8")) for name in ("h200", "h100", "h20", "b200")}


@pytest.mark.parametrize(
    ("config", "h200", "h100", "h20", "b200"),
    [
        # mem_fraction_static as SGLang 0.5.23's own resolver computed it for these command lines.
        (ServerConfig(tp_size=8), 0.886, 0.799, 0.833, 0.844),
        (ServerConfig(tp_size=16), 0.879, 0.787, 0.822, 0.838),
        (ServerConfig(tp_size=8, pp_size=2), 0.890, 0.805, 0.838, 0.846),
        (ServerConfig(tp_size=8, attn_dp_size=4), 0.822, 0.686, 0.738, 0.793),
        (ServerConfig(tp_size=8, attn_dp_size=8), 0.758, 0.573, 0.644, 0.743),
        (ServerConfig(tp_size=8, attn_dp_size=8, cuda_graph_max_bs_decode=64), 0.882, 0.791, None, 0.840),
        (ServerConfig(tp_size=16, attn_dp_size=16), 0.623, 0.335, 0.445, 0.637),
        (ServerConfig(tp_size=8, moe_a2a_backend="deepep"), 0.865, 0.761, None, 0.827),
        (ServerConfig(tp_size=8, attn_dp_size=8, moe_a2a_backend="deepep"), 0.736, 0.535, 0.613, 0.726),
        (ServerConfig(tp_size=8, chunked_prefill_size=4096), 0.929, 0.874, None, 0.944),
        (ServerConfig(tp_size=8, chunked_prefill_size=32768), 0.630, 0.347, None, 0.710),
        (ServerConfig(tp_size=8, disable_cuda_graph=True), 0.904, 0.831, None, 0.858),
    ],
)
def test_default_memory_fraction(
    config: ServerConfig, h200: float | None, h100: float | None, h20: float | None, b200: float | None
) -> None:
    for gpu, fraction in {"h200": h200, "h100": h100, "h20": h20, "b200": b200}.items():
        if fraction is not None:
            assert resolve(config, R1, GPUS[gpu], NEWEST).config.mem_fraction_static == fraction


def test_every_default_has_a_reason() -> None:
    found = resolve(ServerConfig(tp_size=8), R1, GPUS["h200"], NEWEST)
    filled = {
        name for name in ServerConfig.__slots__ if getattr(found.config, name) != getattr(ServerConfig(tp_size=8), name)
    }
    assert filled == set(found.reasons)
    assert "143771 MiB less a reserve of 16384 MiB" in found.reasons["mem_fraction_static"]


@pytest.mark.parametrize(("tp", "fraction"), [(16, 0.79), (8, 0.81), (4, 0.85), (1, 0.88)])
def test_old_versions_take_the_fraction_from_a_table(tp: int, fraction: float) -> None:
    assert resolve(ServerConfig(tp_size=tp), R1, GPUS["h200"], Version("0.4.3")).config.mem_fraction_static == fraction


def test_mtp_caps_requests_unless_told() -> None:
    spec = Speculative.chain(3)
    assert (
        resolve(ServerConfig(tp_size=8, speculative=spec), R1, GPUS["h200"], NEWEST).config.max_running_requests == 48
    )
    told = ServerConfig(tp_size=8, speculative=spec, max_running_requests=256)
    assert resolve(told, R1, GPUS["h200"], NEWEST).config.max_running_requests == 256


FULL = ServerConfig(
    tp_size=8,
    attn_dp_size=8,
    ep_size=8,
    moe_a2a_backend="deepep",
    speculative=Speculative.chain(2),
    mem_fraction_static=0.85,
    cuda_graph_max_bs_decode=64,
)


@pytest.mark.parametrize(
    ("version", "expected", "absent"),
    [
        ("0.5.23", ["--attn-dp-size 8", "--ep-size 8", "--moe-a2a-backend deepep", "--cuda-graph-max-bs-decode 64"],
         ["--enable-dp-attention", "--cuda-graph-max-bs "]),
        ("0.5.12", ["--dp-size 8", "--enable-dp-attention", "--ep-size 8", "--cuda-graph-max-bs 64"],
         ["--attn-dp-size", "-decode"]),
        ("0.4.6", ["--dp-size 8", "--enable-dp-attention", "--enable-deepep-moe", "--cuda-graph-max-bs 64"],
         ["--ep-size", "--moe-a2a-backend"]),
    ],
)  # fmt: skip
def test_each_version_has_its_words(version: str, expected: list[str], absent: list[str]) -> None:
    line = " ".join(to_argv(FULL, Version(version)))
    for words in expected:
        assert words in line
    for words in absent:
        assert words not in line
    assert "--speculative-num-steps 2 --speculative-eagle-topk 1 --speculative-num-draft-tokens 3" in line


def test_the_founding_version_spells_its_own_expert_parallelism() -> None:
    config = ServerConfig(tp_size=8, attn_dp_size=8, ep_size=8)
    assert to_argv(config, Version("0.4.3")) == [
        "--tp-size", "8", "--dp-size", "8", "--enable-dp-attention", "--enable-ep-moe",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "flag", "since"),
    [
        (ServerConfig(tp_size=4, pp_size=2), "--pp-size", "0.4.6.post2"),
        (ServerConfig(tp_size=8, speculative=Speculative.chain(1)), "--speculative-algorithm", "0.4.3.post2"),
        (ServerConfig(tp_size=8, attn_dp_size=4), "--dp-size", "0.4.4.post1"),
        (ServerConfig(tp_size=8, page_size=64), "--page-size", "0.4.4"),
        (ServerConfig(tp_size=8, moe_runner_backend="triton"), "--moe-runner-backend", "0.5.0"),
    ],
)
def test_what_a_version_cannot_say_names_flag_and_version(config: ServerConfig, flag: str, since: str) -> None:
    with pytest.raises(InputError, match=f"{flag}.*{since}"):
        to_argv(config, Version("0.4.3"))


@given(
    st.sampled_from(["0.4.3", "0.4.4.post1", "0.4.6.post5", "0.5.7", "0.5.12", "0.5.23"]),
    st.integers(1, 2048),
    st.data(),
)
def test_typing_what_was_resolved_resolves_to_the_same(version: str, clients: int, data: st.DataObject) -> None:
    """What the planner evaluated is what SGLang will make of the exported flags."""
    parsed = Version(version)
    machine = GPUS["h200"]
    shape = data.draw(st.sampled_from(list(shapes(space_of(machine, parsed, arch=R1)))))
    if parsed < Version("0.4.3.post2") and shape.speculative:
        return
    space = space_of(machine, parsed, arch=R1)
    context = Context(arch=R1, machine=machine, engine=profile_for(parsed), version=parsed)
    config = data.draw(st.sampled_from(fill_grid(shape, space, clients, context)))
    assert resolve(as_launched(config, parsed), R1, machine, parsed).config == config


def test_layouts_use_every_gpu_and_no_layout_twice() -> None:
    for name, count in (("h200x8", 8), ("2xh100x8", 16)):
        machine = machine_of(hardware_from_catalogue(name))
        found = list(layouts(machine, NEWEST))
        assert len({replace(layout) for layout in found}) == len(found)
        assert all(layout.gpu_count == count for layout in found)
