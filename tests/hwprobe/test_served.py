"""DeepGEMM and FlashMLA on stand-ins: the layouts and arguments SGLang gives them, and what is said where they fail."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import GraphTimer

from hwprobe.kernels import served
from hwprobe.kernels.ablation import measure_ablation
from hwprobe.kernels.report import Report
from hwprobe.kernels.served import _by_block, _by_token, measure_deep_gemm, measure_flash_mla
from hwprobe.kernels.timing import CpuTimer

SHAPES = ((128, 192, 256), (64, 128, 256))


def deep_gemm(patch: pytest.MonkeyPatch, spoil: float = 1.0, refuse: str = "") -> list[tuple[int, ...]]:
    """Install a DeepGEMM that computes on the CPU; return the scales' shapes it was given."""
    given: list[tuple[int, ...]] = []

    def kernel(lhs: tuple[Any, Any], rhs: tuple[Any, Any], out: Any) -> None:
        if refuse and out.shape[0] != 128:
            raise RuntimeError(refuse)
        given.append((*lhs[1].shape, *rhs[1].shape))
        left = lhs[0].float() * lhs[1].repeat_interleave(128, 1)
        right = rhs[1].repeat_interleave(128, 0)[: rhs[0].shape[0]].repeat_interleave(128, 1) * rhs[0].float()
        out.copy_(left @ right.t() * spoil)

    package, utils, layout = (ModuleType(name) for name in ("deep_gemm", "deep_gemm.utils", "deep_gemm.utils.layout"))
    package.fp8_gemm_nt = kernel  # type: ignore[attr-defined]
    layout.get_mn_major_tma_aligned_tensor = lambda scales: scales  # type: ignore[attr-defined]
    for module in (package, utils, layout):
        patch.setitem(sys.modules, module.__name__, module)
    return given


def test_deep_gemm_gets_scales_of_tokens_and_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    given = deep_gemm(monkeypatch)
    report = measure_deep_gemm(CpuTimer(), quick=False, shapes=SHAPES)
    assert set(report.quantities) == {"fp8_block_tflops", "fp8_block_64x128x256_tflops"}
    assert set(given) == {(128, 4, 2, 4), (128, 2, 2, 2), (64, 2, 1, 2)}  # 192 rows of weights are a block and a half
    assert report.missing == ()


def test_deep_gemms_weights_rotate_through_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    deep_gemm(monkeypatch)
    monkeypatch.setattr(served, "CACHES", 1)
    report = measure_deep_gemm(GraphTimer(l2_mib=1), quick=True, shapes=((16, 512, 512),))
    assert "4 weights in rotation" in report.quantities["fp8_block_tflops"].source


def test_a_wrong_product_has_no_figure_and_a_refused_shape_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    deep_gemm(monkeypatch, spoil=1.2)
    report = measure_deep_gemm(CpuTimer(), quick=True, shapes=SHAPES)
    assert report.quantities == {}
    assert report.missing == ("DeepGEMM: its product is 20% off that of FP32; no figure",)
    deep_gemm(monkeypatch, refuse="nvcc: no such program")
    report = measure_deep_gemm(CpuTimer(), quick=False, shapes=SHAPES)
    assert set(report.quantities) == {"fp8_block_tflops"}
    assert report.missing == ("DeepGEMM 64x128x256: RuntimeError: nvcc: no such program",)
    deep_gemm(monkeypatch, refuse="CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):  # the child ends: nothing after it can be trusted
        measure_deep_gemm(CpuTimer(), quick=False, shapes=SHAPES)


def test_quantized_numbers_are_near_the_wide_ones() -> None:
    wide = torch.randn(192, 256)
    for numbers, scales in (_by_token(wide), _by_block(wide)):
        spread = scales.repeat_interleave(128, 1)
        spread = spread if spread.shape[0] == 192 else spread.repeat_interleave(128, 0)[:192]
        assert float(((numbers.float() * spread) - wide).norm() / wide.norm()) < 0.04


def test_kernels_that_do_not_import_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("deep_gemm", "sgl_kernel", "flash_mla"):
        monkeypatch.setitem(sys.modules, name, None)
    reports: tuple[Report, ...] = (
        measure_deep_gemm(CpuTimer(), quick=True),
        measure_flash_mla(CpuTimer(), quick=True),
    )
    assert [report.missing[0].split(":")[0] for report in reports] == ["DeepGEMM", "FlashMLA"]
    assert all("Error" in report.missing[0] for report in reports)


def test_flash_mla_gets_what_sglang_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    module = ModuleType("sgl_kernel.flash_mla")
    tiles, splits = object(), object()
    module.get_mla_metadata = lambda lengths, heads, kv: (tiles, splits)  # type: ignore[attr-defined]
    module.flash_mla_with_kvcache = lambda **given: calls.append(given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sgl_kernel", ModuleType("sgl_kernel"))
    monkeypatch.setitem(sys.modules, "sgl_kernel.flash_mla", module)
    timer = CpuTimer()
    timer.cache_bytes = 100_000
    report = measure_flash_mla(timer, quick=False, heads=(4,), contexts=((1, 64), (8, 256)))
    given = calls[-1]
    assert given["q"].shape == (8, 1, 4, 576)
    assert given["k_cache"].shape == (32, 64, 1, 576)
    assert sorted(given["block_table"].flatten().tolist()) == list(range(32))
    assert given["cache_seqlens"].tolist() == [256] * 8
    assert (given["head_dim_v"], given["causal"]) == (512, True)
    assert given["softmax_scale"] == pytest.approx(192**-0.5)
    # One short request stays in the cache: its time is a floor, and no rate.
    assert set(report.quantities) == {f"flash_mla_4_heads_{what}" for what in ("1x64_us", "8x256_us", "8x256_gb_s")}


def test_the_ablation_has_both_of_every_pair() -> None:
    parts: list[Report] = []
    found = measure_ablation(CpuTimer(), quick=True, stream_mib=(2,), shapes=((8, 128, 128),), emit=parts.append)
    names = set(found.quantities)
    for pair in (
        ("stream_2mib_as_asked_gb_s", "stream_2mib_aligned_gb_s"),
        ("gemm_8x128x128_eager_warm_us", "gemm_8x128x128_graph_cold_us"),
        ("queue_mm_us", "queue_replay_us"),
    ):
        assert {f"ablation_{name}" for name in pair} <= names
    assert "ablation_bf16_zeros_tflops" in names
    assert [len(part.quantities) for part in parts] == list(range(1, len(names) + 1))


def test_torchs_shapes_and_types_hold_without_a_device() -> None:
    """FakeTensorMode runs torch's own shape and type rules for CUDA: the FP8 layout among them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from hwprobe.kernels import compute

    def draw(count: int, dtype: torch.dtype, device: torch.device) -> Any:
        return torch.empty(count, dtype=dtype, device=device)

    timer: Any = SimpleNamespace(device=torch.device("cuda"))
    with FakeTensorMode():
        for dtype in (torch.bfloat16, torch.float8_e4m3fn):
            for shape in compute.GPU_SHAPES:
                out = compute._product(timer, dtype, shape, draw)()
                assert tuple(out.shape) == shape[:2]
                assert out.dtype is torch.bfloat16
